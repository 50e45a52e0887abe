"""The Pareto front against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import BudgetError
from elastic.selection.pareto import pareto_front
from elastic.selection.search import rank
from tests.selection.points import point


def beats(a, b):
    at_least = a.quality.value >= b.quality.value if a.quality.higher_is_better else a.quality.value <= b.quality.value
    strict = a.cost.flops < b.cost.flops or a.quality.better_than(b.quality)
    return a.cost.flops <= b.cost.flops and at_least and strict


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=20), st.booleans())
def test_front_is_what_no_other_point_beats(pairs, higher_is_better):
    points = [point(f * 10, float(v), higher_is_better=higher_is_better, width=i + 1) for i, (f, v) in enumerate(pairs)]
    unbeaten = [p for p in points if not any(beats(q, p) for q in points)]
    front = pareto_front(points)
    assert {(p.cost.flops, p.quality.value) for p in front} == {(p.cost.flops, p.quality.value) for p in unbeaten}
    assert len({(p.cost.flops, p.quality.value) for p in front}) == len(front)
    assert [p.cost.flops for p in front] == sorted(p.cost.flops for p in front)


def test_of_equals_the_first_is_kept():
    first, second = point(width=1), point(width=2)
    assert pareto_front([first, second]) == [first]


def test_other_costs():
    assert len(pareto_front([point(100, 1.0), point(200, 2.0)], "memory_bytes")) == 2
    with pytest.raises(BudgetError, match="unknown cost 'flop'; did you mean 'flops'?"):
        pareto_front([], "flop")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_neither_is_on_the_front_nor_hides_others(value):
    good = [point(150, 70.0, width=2), point(200, 90.0, width=3)]
    diverged = point(100, value)
    assert pareto_front([diverged, *good]) == good
    assert sorted([diverged, *good], key=rank)[-1] is diverged


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=20))
def test_a_front_over_two_costs(triples):
    points = []
    for index, (flops, params, value) in enumerate(triples):
        made = point(flops, float(value), width=index + 1)
        points.append(replace(made, cost=replace(made.cost, params=params)))

    def key(p):
        return p.cost.flops, p.cost.params, -p.quality.value

    unbeaten = {key(p) for p in points
                if not any(key(q) != key(p) and all(a <= b for a, b in zip(key(q), key(p), strict=True))
                           for q in points)}  # fmt: skip
    front = pareto_front(points, ["flops", "params"])
    assert {key(p) for p in front} == unbeaten
    assert len(front) == len(unbeaten)
