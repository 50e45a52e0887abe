"""Which layers leave first, and that subnets follow the order."""

from __future__ import annotations

import copy

import pytest
import torch

from elastic.errors import ElasticError, SpaceError
from elastic.nested import active, get_elastic, make_elastic, set_drop_order
from elastic.ordering import DEPTH_METHODS, drop_order
from elastic.ordering.depth import _leaving_run
from elastic.space import DropOrder, SearchSpace
from tests.conftest import make_tiny_elastic
from tests.tiny import MODELS, SPACE, tiny_bert, tiny_llama, tiny_vit


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_gets_a_whole_order(name, batches):
    model = make_tiny_elastic(MODELS[name]())
    for method in DEPTH_METHODS:
        order = drop_order(model, method, batches(model, 1))
        assert sorted(order.layers) == sorted(order.attention) == sorted(order.mlp) == [0, 1, 2]


def weaken(model, layer, part):
    """Let a sub-layer add next to nothing: in a pre-norm model, it then passes its input on."""
    family = get_elastic(model).family
    module = family.find_layers(model)[1][layer].get_submodule(
        family.head_output if part == "attention" else family.ffn_output
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1e-4)


@pytest.mark.parametrize("method", DEPTH_METHODS)
@pytest.mark.parametrize("build", [tiny_vit, tiny_llama])
def test_sublayers_that_do_nothing_leave_first(build, method, batches):
    model = make_elastic(build(), SPACE)
    weaken(model, 1, "attention")
    weaken(model, 1, "mlp")
    weaken(model, 2, "mlp")
    order = drop_order(model, method, batches(model))
    assert order.layers[0] == 1
    assert order.attention[0] == 1
    assert set(order.mlp[:2]) == {1, 2}


def test_subnets_keep_what_leaves_last():
    order = DropOrder(layers=(1, 0, 2), attention=(2, 1, 0), mlp=(0, 2, 1))
    resolved = make_resolved(order)
    assert resolved.uniform(layers=2).kept_layers == (0, 2)
    assert resolved.uniform(layers=1).kept_layers == (2,)
    assert resolved.uniform(attention=2).heads == (4, 4, 0)
    # Among the layers that are kept:
    assert resolved.uniform(layers=2, attention=2, mlp=2).kept_layers == (0, 2)


def make_resolved(order):
    model = make_elastic(tiny_vit(), SPACE)
    set_drop_order(model, order)
    return get_elastic(model).resolved


def test_every_subnet_is_in_its_space():
    resolved = make_resolved(DropOrder(layers=(1, 0, 2), attention=(2, 1, 0), mlp=(0, 2, 1)))
    for subnet in [*resolved.uniform_subnets(), *resolved.min_slope_mixtures()]:
        assert subnet in resolved


def test_the_full_model_is_left_alone(batches):
    model = make_elastic(tiny_bert(), SPACE)
    weights = copy.deepcopy(model.state_dict())
    full = get_elastic(model).active.current
    drop_order(model, "output", batches(model, 1))
    assert get_elastic(model).active.current == full
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_run_of_layers_grows_by_its_nearest_neighbour():
    positions = torch.tensor([0.0, 5.0, 6.0, 6.5, 9.0])  # layer 2 changes least, then 1, then 3, then 0
    assert _leaving_run((positions[:, None] - positions[None, :]).abs()) == (2, 1, 3, 0)


def test_wrong_orders_are_refused():
    with pytest.raises(SpaceError, match="drop order of attention must hold every layer index from 0 once"):
        DropOrder(layers=(0, 1, 2), attention=(0, 0, 2), mlp=(0, 1, 2))
    with pytest.raises(SpaceError, match="the drop order is of 2 layers, and the model has 3"):
        make_elastic(tiny_vit(), SearchSpace(), DropOrder((0, 1), (0, 1), (0, 1)))


def test_bad_methods_and_no_data_are_refused():
    model = make_elastic(tiny_vit(), SPACE)
    with pytest.raises(ElasticError, match="'luck' is not one of cosine, angular, output"):
        drop_order(model, "luck", [])
    for method in DEPTH_METHODS:
        with pytest.raises(ElasticError, match="no calibration data"):
            drop_order(model, method, [])


def test_a_nested_block_is_not_entered_while_measuring(batches):
    model = make_elastic(tiny_vit(), SPACE)
    small = get_elastic(model).resolved.smallest
    with active(model, small):
        drop_order(model, "output", batches(model, 1))
        assert get_elastic(model).active.current == small
