"""What a Pareto front is taken from: within the limits, over the whole range, and as good as what search finds."""

from __future__ import annotations

import random

import pytest

from elastic.cost import Budget, CostModel, Limits
from elastic.nested import get_elastic
from elastic.selection import Quality, default_input_shapes, search
from elastic.selection.landscape import landscape, measure_landscape
from elastic.selection.pareto import COSTS, pareto_front

RNG = random.Random(5)
WORTH = {(axis, layer): RNG.uniform(0.1, 3) for axis in ("ffn", "heads") for layer in range(3)}


def additive(subnet) -> Quality:
    worth = sum(
        WORTH["ffn", layer] * ffn / 64 + WORTH["heads", layer] * heads / 4
        for layer, (ffn, heads) in enumerate(zip(subnet.ffn, subnet.heads, strict=True))
    )
    return Quality("accuracy", worth, higher_is_better=True, split="validation", num_examples=100)


@pytest.fixture
def parts(universal):
    resolved = get_elastic(universal).resolved
    return resolved, CostModel.of(universal, default_input_shapes(universal))


def test_the_landscape_spans_the_range_of_costs(parts):
    resolved, cost_model = parts
    found = landscape(resolved, cost_model, {"S": resolved.smallest, "XL": resolved.largest}, 30)
    assert len({candidate.subnet for candidate in found}) == len(found)
    assert {candidate.kind for candidate in found} == {"granularity", "uniform", "mix"}
    assert [candidate.name for candidate in found[:2]] == ["S", "XL"]


@pytest.mark.parametrize("cost", ["flops", "memory_bytes"])
def test_the_front_is_as_good_as_search_at_the_budgets_looked_at(universal, parts, cost):
    resolved, cost_model = parts
    least, most = (getattr(cost_model.cost(s), cost) for s in (resolved.smallest, resolved.largest))
    points = measure_landscape(resolved, cost_model, additive, {}, costs=[cost], num_candidates=12)
    front = pareto_front(points, cost)
    for step in range(1, 5):
        budget = least + (most - least) * step // 4
        best = max(point.quality.value for point in front if getattr(point.cost, cost) <= budget)
        found = search(universal, Budget(**{COSTS[cost]: budget}), additive)
        assert best >= found.best.quality.value - 1e-9


def test_every_subnet_is_measured_once_and_shown_once(parts):
    resolved, cost_model = parts
    asked = []
    granularities = {"S": resolved.smallest, "XL": resolved.largest}
    points = measure_landscape(
        resolved, cost_model, lambda s: asked.append(s) or additive(s), granularities, num_candidates=20
    )
    assert len(asked) == len(set(asked))
    assert len(points) == len({point.subnet for point in points})
    assert {point.subnet for point in points} == {s for s in asked if s in resolved}
    assert [point.name for point in points[:2]] == ["S", "XL"]
    assert all(point.cost == cost_model.cost(point.subnet) for point in points)


@pytest.mark.parametrize("method", ["predictor", "heuristic"])
def test_all_are_within_the_limits(parts, method):
    resolved, cost_model = parts
    limits = Limits({"params": 0.7 * cost_model.cost(resolved.largest).params})
    points = measure_landscape(resolved, cost_model, additive, {}, limits=limits, method=method, num_candidates=20)
    assert points
    assert all(limits.met_by(point.cost) for point in points)


def test_heuristic_measures_no_more_than_asked(parts):
    resolved, cost_model = parts
    points = measure_landscape(resolved, cost_model, additive, {}, method="heuristic", num_candidates=10)
    assert len(points) <= 10
    assert all(point.expected is None for point in points)


def test_qualities_that_tell_their_noise_have_an_expected_one(parts):
    resolved, cost_model = parts
    noise = random.Random(1)

    def noisy(subnet):
        halves = tuple(additive(subnet).value + noise.gauss(0, 0.5) for _ in range(2))
        return Quality("accuracy", sum(halves) / 2, True, "validation", 100, halves=halves)

    points = measure_landscape(resolved, cost_model, noisy, {}, num_candidates=20)

    def error(values):
        return sum((value - additive(p.subnet).value) ** 2 for value, p in zip(values, points, strict=True))

    assert error([p.expected for p in points]) < error([p.quality.value for p in points])
