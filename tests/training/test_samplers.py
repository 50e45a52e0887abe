"""Samplers depend on step and seed alone, and return what they promise."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import SpaceError
from elastic.space import ModelDims, SearchSpace
from elastic.training import (
    Buckets,
    ExitPairs,
    Joint,
    LayerDrop,
    Random,
    Sandwich,
    Stages,
    Strata,
    Uniform,
    by_exit,
    by_subnet,
)
from elastic.training.passes import exit_of

SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[1, 2, 3]).resolve(ModelDims(3, 64, 4, 2, 32))
GRID = SearchSpace(exit=[1, 2, 3], embedding_dim=[8, 16, 32]).resolve(ModelDims(3, 64, 4, 2, 32))
GRANULARITIES = [SPACE.smallest, SPACE.uniform(ffn=32), SPACE.largest]


def flops(subnet):
    return 2 * sum(subnet.ffn) + sum(subnet.heads)


@given(step=st.integers(0, 10**6), seed=st.integers(0, 100))
def test_the_same_step_gives_the_same_subnets(step, seed):
    for make in (
        lambda: Uniform(GRANULARITIES, seed),
        lambda: Uniform(GRANULARITIES, seed, weights=[1, 2, 3]),
        lambda: Uniform(GRANULARITIES, seed, mixed=0.5, space=SPACE),
        lambda: Sandwich(SPACE, 2, seed),
        lambda: Joint(GRANULARITIES),
        lambda: Strata(GRANULARITIES, 2, seed),
        lambda: Random(SPACE, seed),
        lambda: ExitPairs(GRID, seed),
        lambda: LayerDrop(SPACE, 0.4, seed, exits=[1, 2, 3], rotation=2),
        lambda: Buckets(SPACE, flops, seed=seed, pool_size=50),
    ):
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


def test_uniform_mixes_as_often_as_asked() -> None:
    sampler = Uniform(GRANULARITIES, seed=1, mixed=0.25, space=SPACE)
    mixed = sum(sampler(step, 0)[0] not in GRANULARITIES for step in range(4000))
    assert 0.2 < mixed / 4000 < 0.27


def test_weights_say_how_often_each_is_drawn():
    sampler = Uniform(GRANULARITIES, seed=1, weights=[0.0, 1.0, 3.0])
    drawn = Counter(sampler(step, 0)[0] for step in range(4000))
    assert drawn[GRANULARITIES[0]] == 0
    assert 2800 <= drawn[SPACE.largest] <= 3200


def test_strata_draw_one_of_each_size_class():
    four = [SPACE.smallest, SPACE.uniform(ffn=16), SPACE.uniform(ffn=32), SPACE.largest]
    drawn = [Strata(four, 2)(step, 0) for step in range(200)]
    assert all(large in four[2:] and small in four[:2] for large, small in drawn)
    assert {subnet for pair in drawn for subnet in pair} == set(four)
    with pytest.raises(SpaceError, match="4 subnets cannot be split into 5"):
        Strata(four, 5)


def test_sandwich_runs_the_named_ones_in_every_step():
    middle = SPACE.uniform(ffn=32)
    assert all(middle in Sandwich(SPACE, 1, also=[middle])(step, 0) for step in range(20))


def test_random_draws_anew_for_each_batch_only_if_asked():
    once, each = Random(SPACE, 0), Random(SPACE, 0, per_micro_step=True)
    assert all(once(step, 0) == once(step, 1) for step in range(20))
    assert len({each(7, micro_step)[0] for micro_step in range(40)}) > 20
    assert all(subnet in SPACE for micro_step in range(20) for subnet in each(3, micro_step))


def test_the_largest_is_drawn_as_often_as_asked():
    sampler = Random(SPACE, 0, largest=0.5)
    assert 450 <= sum(sampler(step, 0)[0] == SPACE.largest for step in range(1000)) <= 560


def test_exit_pairs_are_four_of_which_one_is_whole():
    for step in range(30):
        whole, narrow, early, both = ExitPairs(GRID, 0)(step, 0)
        assert whole == GRID.largest and (early.ffn, narrow.embedding_dim) == (both.ffn, both.embedding_dim)
        assert exit_of(early) < 3 and early.embedding_dim is None and narrow.embedding_dim in (8, 16)


def test_layers_are_dropped_as_often_as_the_rate_says():
    space = SearchSpace().resolve(ModelDims(8, 64, 4, 4, 32))
    for ramp, wanted in (("flat", [0.3] * 8), ("linear", [0.3 * i / 7 for i in range(8)])):
        sampler = LayerDrop(space, 0.3, ramp=ramp)
        kept = Counter(layer for step in range(4000) for layer in sampler(step, 0)[0].kept_layers)
        assert all(abs(1 - kept[layer] / 4000 - rate) < 0.03 for layer, rate in enumerate(wanted))
    steep = LayerDrop(space, 0.3, ramp="exponential")
    assert [round(steep._rate(place, 8), 3) for place in (0, 7)] == [0.0, 0.3]
    assert steep._rate(3, 8) < 0.3 * 3 / 7


def test_one_layer_stays():
    space = SearchSpace().resolve(ModelDims(2, 64, 4, 4, 32))
    kept = Counter(LayerDrop(space, 0.95)(step, 0)[0].kept_layers for step in range(500))
    assert () not in kept and min(kept[(0,)], kept[(1,)]) > 100


def test_exits_of_a_thinned_model_take_turns():
    space = SearchSpace().resolve(ModelDims(6, 64, 4, 4, 32))
    sampler = LayerDrop(space, 0.0, exits=[1, 2, 3, 4], rotation=2)
    assert [[exit_of(s) for s in sampler(step, 0)] for step in (0, 1)] == [[6, 3, 1], [6, 4, 2]]


def test_buckets_are_drawn_evenly_over_the_range_of_costs():
    sampler = Buckets(SPACE, flops, num_buckets=4)
    low, high = flops(SPACE.smallest), flops(SPACE.largest)
    quarter = Counter(min(3, int(4 * (flops(sampler(step, 0)[0]) - low) / (high - low))) for step in range(2000))
    assert all(400 < quarter[index] < 600 for index in range(4))
    last = Buckets(SPACE, flops, num_buckets=4, weights=[0, 0, 0, 1])
    assert all(flops(last(step, 0)[0]) > low + 0.7 * (high - low) for step in range(50))


def test_stages_follow_each_other():
    stages = Stages([Joint([SPACE.largest]), Joint([SPACE.smallest])], [0, 10])
    assert [stages(step, 0)[0] == SPACE.largest for step in (0, 9, 10, 500)] == [True, True, False, False]
    with pytest.raises(SpaceError, match="start at step 0"):
        Stages([Joint([SPACE.largest])], [5])


def test_weights_of_losses():
    full, early = SPACE.largest, GRID.uniform(exit=2)
    assert by_subnet({full: 2.0})(full) == 2.0 and by_subnet({full: 2.0})(early) == 1.0
    assert [by_exit(0.5)(s) for s in (GRID.uniform(exit=1), early, full)] == [0.5, 1.5, 6.0]


def test_bad_weights_and_rates_are_refused():
    for make in (
        lambda: Uniform(GRANULARITIES, mixed=0.5),
        lambda: Uniform(GRANULARITIES, weights=[1.0]),
        lambda: Buckets(SPACE, flops, num_buckets=2, weights=[0.0, 0.0]),
        lambda: LayerDrop(SPACE, 1.0),
    ):
        with pytest.raises(SpaceError):
            make()
