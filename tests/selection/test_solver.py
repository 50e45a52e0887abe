"""The exact solver against brute force, and what it proves."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import BudgetError
from elastic.selection.solver import RELATIVE_GAP, Option, solve

scores = st.floats(-100, 100, allow_nan=False, width=32)
costs = st.tuples(st.integers(0, 50), st.integers(0, 50))
problems = st.lists(
    st.lists(st.builds(Option, score=scores, costs=costs), min_size=1, max_size=4), min_size=1, max_size=5
)


@settings(max_examples=60)
@given(problems, st.tuples(st.integers(0, 150), st.integers(0, 150)))
def test_equal_to_brute_force(groups, limits):
    def total(chosen):
        return sum(group[i].score for group, i in zip(groups, chosen, strict=True))

    def within(chosen):
        return all(
            sum(group[i].costs[k] for group, i in zip(groups, chosen, strict=True)) <= limit
            for k, limit in enumerate(limits)
        )

    feasible = [c for c in itertools.product(*(range(len(group)) for group in groups)) if within(c)]
    if not feasible:
        with pytest.raises(BudgetError):
            solve(groups, limits)
        return
    best = max(map(total, feasible))
    solution = solve(groups, limits)
    assert within(solution.chosen)
    assert solution.score == pytest.approx(total(solution.chosen), abs=1e-6)
    tolerance = RELATIVE_GAP * abs(best) + 1e-6
    assert best - tolerance <= solution.score <= best + 1e-6
    assert solution.bound >= best - 1e-4


def test_without_limits_the_best_of_each():
    groups = [[Option(1.0, ()), Option(3.0, ())], [Option(2.0, ()), Option(-1.0, ())]]
    assert solve(groups, ()).chosen == (1, 0)


def test_costs_of_very_different_size():
    groups = [[Option(1.0, (1e12, 10.0)), Option(0.5, (5e11, 1e6))] for _ in range(4)]
    assert sorted(solve(groups, (3.5e12, 1e7)).chosen) == [0, 0, 0, 1]
    assert solve(groups, (4e12, 40.0)).chosen == (0, 0, 0, 0)


def test_the_next_best_comes_out_when_the_best_is_excluded():
    groups = [[Option(float(a), (a,)) for a in range(3)], [Option(float(b) / 2, (b,)) for b in range(3)]]
    found, totals = [], []
    for _ in range(9):
        solution = solve(groups, (100,), excluded=found)
        assert solution.chosen not in found
        found.append(solution.chosen)
        totals.append(solution.score)
    assert totals == sorted(totals, reverse=True)
    with pytest.raises(BudgetError, match="no subnet meets all"):
        solve(groups, (100,), excluded=found)


def test_nothing_is_printed(capfd):
    """HiGHS leaves debugging output on standard output, where a command's JSON goes."""
    rng = random.Random(0)
    groups = [
        [Option(-rng.random() * (8 - f) ** 2, (f * 1e9 + h * 7e8, f * 3e6 + h * 1e6, f + rng.random()))
         for f in range(9) for h in range(5)]
        for _ in range(24)
    ]  # fmt: skip
    solve(groups, (24 * 5e9, 24 * 12e6, 24 * 4))
    print("ours")
    assert capfd.readouterr().out == "ours\n"
