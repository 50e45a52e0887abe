"""Reordering units changes nothing but their places."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import ElasticError
from elastic.extraction import largest_difference, sample_inputs
from elastic.nested import active, get_elastic
from elastic.ordering import order_within, permute
from elastic.ordering.sites import find_sites
from tests.tiny import MODELS


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_any_permutation_preserves_the_function(name):
    model = MODELS[name]()
    inputs = sample_inputs(model.config, batch=3)
    expected = outputs(model, inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    orders = {
        (site.layer, site.axis): torch.randperm(site.num_units, generator=generator).tolist()
        for site in find_sites(model)
    }
    permute(model, orders)
    assert largest_difference(expected, outputs(model, inputs)) <= 1e-5
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) >= 2 * len(orders) // 2


def test_permuting_a_universal_model_moves_what_subnets_keep(universal):
    elastic = get_elastic(universal)
    inputs = sample_inputs(universal.config, batch=2)
    full = outputs(universal, inputs)
    narrow = elastic.resolved.uniform(ffn=16)
    with active(universal, narrow):
        before = outputs(universal, inputs)
    permute(universal, {(layer, "ffn"): list(reversed(range(64))) for layer in range(3)})
    assert largest_difference(full, outputs(universal, inputs)) <= 1e-5
    with active(universal, narrow):
        assert largest_difference(before, outputs(universal, inputs)) > 1e-5


def test_a_trained_nesting_is_not_disturbed(universal):
    """Each stage of progressive training may order only what the stages before it did not nest."""
    resolved = get_elastic(universal).resolved
    inputs = sample_inputs(universal.config, batch=2)
    trained = [resolved.uniform(ffn=width) for width in resolved.ffn]
    expected = []
    for subnet in trained:
        with active(universal, subnet):
            expected.append(outputs(universal, inputs))
    scores = torch.rand(64, generator=torch.Generator().manual_seed(1))
    permute(universal, {(layer, "ffn"): order_within(scores, resolved.ffn) for layer in range(3)})
    for subnet, before in zip(trained, expected, strict=True):
        with active(universal, subnet):
            assert largest_difference(before, outputs(universal, inputs)) <= 1e-5


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.data())
def test_order_within_sorts_between_boundaries_only(values, data):
    boundaries = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    order = order_within(torch.tensor(values), boundaries)
    assert sorted(order) == list(range(len(values)))
    edges = sorted({0, *boundaries, len(values)})
    for start, end in itertools.pairwise(edges):
        segment = order[start:end]
        assert sorted(segment) == list(range(start, end))
        kept = [values[i] for i in segment]
        assert kept == sorted(kept, reverse=True)


def test_what_is_no_permutation_is_refused(universal):
    with pytest.raises(ElasticError, match="the order of ffn in layer 1 is not a permutation of 64 units"):
        permute(universal, {(1, "ffn"): [0] * 64})
