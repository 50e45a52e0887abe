"""The subnets of a bundle made for profiling tell the latency of every other one."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elastic.cost import Cost, LatencyModel, subnets_to_profile
from elastic.cost.latency import Additive, curves, features
from elastic.export.runtime.manifest import MEMBER_NAME
from elastic.space import DropOrder, ModelDims, SearchSpace
from tests.latency import read_table, true_ms

SHAPES = {"input_ids": (1, 8)}
COST = Cost(1000, 100, 400, 50, SHAPES)
DIMS = ModelDims(num_layers=6, ffn=1536, heads=12, kv_heads=12, hidden=384)
ORDER = DropOrder(layers=(3, 1, 4, 0, 2, 5), attention=(0, 1, 2, 3, 4, 5), mlp=(5, 4, 3, 2, 1, 0))


def some(*choices):
    """A few of the choices, or none: the axis is not elastic."""
    return st.lists(st.sampled_from(choices), min_size=1, max_size=4, unique=True)


SPACES = st.builds(
    SearchSpace,
    ffn=some(0.125, 0.25, 0.5, 0.625, 0.75, 1.0),
    heads=some(2, 4, 6, 10, 12),
    layers=some(1, 2, 3, 5, 6),
    attention=some(1, 3, 4, 6),
    mlp=some(1, 2, 5, 6),
    exit=some(2, 4, 6),
    hidden=st.sampled_from([[1.0], [0.5, 1.0], [128, 256, 384]]),
    embedding_dim=st.sampled_from([[1.0], [32, 128], [64, 384]]),
)


@given(SPACES, st.sampled_from([None, ORDER]))
@example(SearchSpace(ffn=[0.125], heads=[2], layers=[1, 2, 3], attention=[3], mlp=[2], exit=[4]), None)
def test_what_is_measured_tells_the_whole_space(tmp_path_factory, space, order):
    resolved = space.resolve(DIMS, order)
    chosen = subnets_to_profile(resolved)
    assert len(set(chosen.values())) == len(chosen)
    assert all(subnet in resolved for subnet in chosen.values())
    assert all(MEMBER_NAME.fullmatch(name) for name in chosen)
    assert chosen["largest"] == resolved.largest
    assert len(chosen) <= 16 * len(resolved.hidden)
    table = read_table(tmp_path_factory.mktemp("t") / "t.json", chosen.values(), SHAPES)
    model = LatencyModel.fit(table, SHAPES)
    model.check_covers(resolved)
    rng = random.Random(1)
    for subnet in (resolved.sample(rng) for _ in range(20)):
        assert model.add_to(COST, subnet).latency_ms == pytest.approx(true_ms(subnet), rel=1e-3)


@given(SPACES)
def test_of_the_first_ones_none_is_too_many(space):
    resolved = replace(space, hidden=(1.0,)).resolve(DIMS)
    first = [subnet for name, subnet in subnets_to_profile(resolved).items() if "more-" not in name]
    knots = [curves({w for subnet in first for w in getattr(subnet, axis) if w})[-1] for axis in ("heads", "ffn")]
    assert np.linalg.matrix_rank(np.array([features(subnet, *knots) for subnet in first])) == len(first)


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(ffn=[0.5, 1.0]),
        SearchSpace(ffn=[0.125, 0.25, 0.5, 1.0]),
        SearchSpace(ffn=[0.25, 0.5, 0.75, 1.0], heads=[4, 8, 12], layers=[3, 4, 5, 6], attention=[3, 6], mlp=[4, 6]),
        SearchSpace(heads=[0.5, 1.0], exit=[2, 4, 6]),
        SearchSpace(ffn=[0.125, 0.25, 0.5, 1.0], heads=[3, 6, 12], layers=[1, 3, 6]),
    ],
)
def test_each_is_told_by_the_others(space):
    chosen = subnets_to_profile(space.resolve(DIMS)).values()
    for left_out in chosen:
        others = Additive.fit({subnet: true_ms(subnet) for subnet in chosen if subnet != left_out})
        assert left_out == space.resolve(DIMS).largest or others.predict(left_out) == pytest.approx(true_ms(left_out))


def test_a_space_of_one_subnet_is_that_subnet():
    resolved = SearchSpace().resolve(DIMS)
    assert subnets_to_profile(resolved) == {"largest": resolved.largest}
