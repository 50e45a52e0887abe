"""Samplers depend on step and seed alone, and return what they promise."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import SpaceError
from elastic.space import ModelDims, SearchSpace
from elastic.training import Joint, Sandwich, Uniform

SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[1, 2, 3]).resolve(ModelDims(3, 64, 4, 2, 32))
GRANULARITIES = [SPACE.smallest, SPACE.uniform(ffn=32), SPACE.largest]


@given(step=st.integers(0, 10**6), seed=st.integers(0, 100))
def test_the_same_step_gives_the_same_subnets(step, seed):
    for make in (lambda: Uniform(GRANULARITIES, seed), lambda: Sandwich(SPACE, 2, seed), lambda: Joint(GRANULARITIES)):
        assert list(make()(step, 0)) == list(make()(step, 0)) == list(make()(step, 3))


def test_uniform_draws_each_about_equally():
    sampler = Uniform(GRANULARITIES, seed=1)
    drawn = Counter(sampler(step, 0)[0] for step in range(3000))
    assert set(drawn) == set(GRANULARITIES)
    assert all(900 <= count <= 1100 for count in drawn.values())


def test_joint_returns_all_and_the_largest_first():
    assert Joint(GRANULARITIES)(5, 0)[0] == SPACE.largest
    assert set(Joint(GRANULARITIES)(5, 0)) == set(GRANULARITIES)


def test_sandwich_returns_both_ends_and_random_ones_between():
    sampler = Sandwich(SPACE, num_random=2, seed=0)
    steps = [sampler(step, 0) for step in range(50)]
    assert all(subnets[0] == SPACE.largest and subnets[-1] == SPACE.smallest and len(subnets) == 4 for subnets in steps)
    assert all(subnet in SPACE for subnets in steps for subnet in subnets)
    assert len({subnet for subnets in steps for subnet in subnets[1:3]}) > 20


def test_no_subnets_is_refused():
    with pytest.raises(SpaceError, match="at least one subnet"):
        Uniform([])
