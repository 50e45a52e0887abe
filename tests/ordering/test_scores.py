"""Scores find the units that matter, in every family, without holding the calibration set."""

from __future__ import annotations

import pytest
import torch

from elastic.errors import ElasticError
from elastic.extraction import sample_inputs
from elastic.nested import active, make_elastic
from elastic.ordering import METHODS, check_finite, order_within, permute, score
from elastic.ordering.scores import pivoted_qr_order, reconstruction_order
from elastic.ordering.sites import find_sites
from elastic.space import SearchSpace, Subnet
from tests.tiny import MODELS, tiny_bert, tiny_llama, tiny_vit

NEEDS_DATA = [method for method in METHODS if method != "magnitude"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_unit_of_every_family_gets_a_score(name, method, batches):
    model = MODELS[name]()
    scores = score(model, method, batches(model, 2))
    for site in find_sites(model):
        values = scores[site.layer, site.axis]
        assert values.shape == (site.num_units,)
        assert torch.isfinite(values).all()


def silence(model, site, units):
    """Make some units matter nothing: their output weights are all zero."""
    with torch.no_grad():
        for unit in units:
            columns = slice(unit * site.columns.size, (unit + 1) * site.columns.size)
            weight = site.output.weight
            (weight if weight.shape[1] == site.num_units * site.columns.size else weight.T)[:, columns] = 0


@pytest.mark.parametrize("method", [m for m in METHODS if m != "pivoted_qr"])
@pytest.mark.parametrize("build", [tiny_vit, tiny_bert, tiny_llama])
def test_silent_units_come_last(build, method, batches):
    model = build()
    for site in find_sites(model):
        silence(model, site, [0, 1] if site.axis == "ffn" else [0])
    scores = score(model, method, batches(model))
    for site in find_sites(model):
        silent = [0, 1] if site.axis == "ffn" else [0]
        order = order_within(scores[site.layer, site.axis])
        assert set(order[-len(silent) :]) == set(silent)


@pytest.mark.parametrize("method", METHODS)
def test_ordering_helps_where_units_differ(method, batches):
    """Neurons of very different strength, the strong ones last: every method must bring them to the front."""
    model = tiny_vit()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in find_sites(model):
            if site.axis == "ffn":
                site.output.weight.normal_(0, 0.2, generator=generator)
                layer_input = site.module.get_submodule("mlp.fc1")
                layer_input.weight.normal_(0, 0.3, generator=generator)
                layer_input.weight[:48] *= 0.05
                layer_input.bias[:48] *= 0.05
    inputs = sample_inputs(model.config, batch=8, seed=9)
    narrow = Subnet(ffn=(16,) * 3, heads=(4,) * 3)

    def error(model):
        with torch.no_grad():
            full = model(**inputs)[0]
            with active(model, narrow):
                return float((model(**inputs)[0] - full).square().mean())

    unordered = error(make_elastic(model, SearchSpace()))
    scores = score(model, method, batches(model))
    permute(model, {key: order_within(values) for key, values in scores.items() if key[1] == "ffn"})
    assert error(model) < 0.3 * unordered


@pytest.mark.parametrize("method", NEEDS_DATA)
def test_padding_changes_no_score(method):
    model = tiny_bert().double()  # The greedy orders decide between nearly equal neurons, which rounding would swap.
    inputs = sample_inputs(model.config, batch=1, tokens=8)
    padded = {
        "input_ids": torch.cat([inputs["input_ids"], torch.full((1, 4), 7)], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros(1, 4, dtype=torch.long)], dim=1),
    }
    plain, with_padding = score(model, method, [inputs]), score(model, method, [padded])
    for key, values in plain.items():
        assert torch.allclose(values, with_padding[key], rtol=1e-3, atol=1e-6), key


def test_pivots_are_those_of_qr_on_the_activations():
    from scipy.linalg import qr

    activations = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    activations *= torch.linspace(0.1, 3.0, 12)
    pivots = qr(activations.numpy(), mode="r", pivoting=True)[1].tolist()
    gram = activations.T @ activations
    assert pivoted_qr_order(gram, torch.empty(0), 1) == pivots


def test_pivots_survive_a_gram_matrix_without_full_rank():
    activations = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = pivoted_qr_order(activations.T @ activations, torch.empty(0), 1)
    assert sorted(order) == list(range(12))


@pytest.mark.parametrize("unit", [1, 3])
def test_reconstruction_keeps_what_cannot_be_made_up_for(unit):
    """Half of the units are copies: either of two may leave for nothing, and both matter once one has left."""
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(400, 6 * unit, dtype=torch.float64, generator=generator)
    activations = torch.cat([distinct, distinct], dim=1)
    weight = torch.randn(5, 12 * unit, dtype=torch.float64, generator=generator)
    order = reconstruction_order(activations.T @ activations / 400, weight, unit)
    assert {index % 6 for index in order[:6]} == set(range(6))


@pytest.mark.parametrize("method", NEEDS_DATA)
def test_no_data_is_refused(method):
    with pytest.raises(ElasticError, match="no calibration data with usable rows"):
        score(tiny_vit(), method, [])


def test_unknown_methods_are_refused():
    with pytest.raises(ElasticError, match="the ordering 'luck' is not one of magnitude, activation"):
        score(tiny_vit(), "luck", [])


def test_weights_that_are_no_numbers_are_named():
    model = tiny_llama()
    check_finite(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ElasticError, match=r"'model.layers.1.mlp.up_proj.weight' has 1 values that are NaN"):
        check_finite(model)


@pytest.mark.parametrize("method", ["activation", "pivoted_qr", "first_order"])
def test_activations_that_are_no_numbers_are_refused(method):
    model = tiny_vit()
    inputs = sample_inputs(model.config, batch=2)
    inputs["pixel_values"][0] = float("inf")
    with pytest.raises(ElasticError, match="NaN or infinite"):
        score(model, method, [inputs])
