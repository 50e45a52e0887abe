"""Subnet and precision together: the best measured pair is what enumeration of all pairs finds."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.cost import Budget, CostModel
from elastic.errors import BudgetError, CheckError
from elastic.nested import get_elastic, make_elastic
from elastic.selection import Precision, Quality, joint_search
from elastic.space import SearchSpace
from tests.latency import one_axis_each, read_table, true_ms
from tests.tiny import tiny_vit

SPACE = SearchSpace(ffn=[0.25, 1.0], heads=[0.5, 1.0], layers=[1, 2])
SHAPES = {"pixel_values": (1, 1, 8, 8)}
FACTORS = {"fp32": 1.0, "int8": 0.5, "int4": 0.4}


@pytest.fixture(scope="module")
def model():
    return make_elastic(tiny_vit(), SPACE)


@pytest.fixture(scope="module")
def every(model):
    space, rng = get_elastic(model).resolved, random.Random(0)
    found = sorted({space.sample(rng) for _ in range(50 * space.num_subnets)}, key=lambda s: (s.ffn, s.heads))
    assert len(found) == space.num_subnets
    return found


@pytest.fixture(scope="module")
def costs(model, tmp_path_factory):
    """Cost models by precision: every one a constant share of the latencies in float32."""
    folder, space = tmp_path_factory.mktemp("tables"), get_elastic(model).resolved
    plain, found = CostModel.of(model, SHAPES), {}
    for name, factor in FACTORS.items():
        table = read_table(folder / f"{name}.json", one_axis_each(space), SHAPES, precision=name)
        rows = tuple(row.model_copy(update={"median_ms": factor * row.median_ms}) for row in table.measured)
        found[name] = plain.with_table(table.model_copy(update={"measured": rows}))
    return found


def quality(value, higher_is_better=True):
    return Quality("accuracy" if higher_is_better else "loss", value, higher_is_better, "validation", 100)


def joint(model, latency, evaluate, precisions, **settings):
    return joint_search(model, Budget(latency=latency), evaluate, precisions, **{"method": "heuristic", **settings})


def precisions(costs, lowered, names=tuple(FACTORS)):
    """``lowered(name, subnet)`` measures; float32 is measured anyway."""
    return [
        Precision(name, costs[name], None if name == "fp32" else lambda s, name=name: lowered(name, s))
        for name in names
    ]


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(1.2, 8.0), st.booleans())
def test_equal_to_enumeration_if_everything_is_measured(model, costs, every, seed, limit_ms, higher):
    rng = random.Random(seed)
    true = {(name, subnet): rng.uniform(0, 100) for name in FACTORS for subnet in every}
    within = {pair: value for pair, value in true.items() if costs[pair[0]].cost(pair[1]).latency_ms <= limit_ms}
    result = joint(
        model,
        f"{limit_ms}ms",
        lambda s: quality(true["fp32", s], higher),
        precisions(costs, lambda name, s: quality(true[name, s], higher)),
        num_candidates=200,
        num_lowered=None,
    )
    best = (max if higher else min)(within.values())
    assert result.best.quality.value == best
    assert true[result.best.precision, result.best.subnet] == best
    assert {(point.precision, point.subnet) for point in result.measured} == set(within)
    assert result.num_lowered == sum(name != "fp32" for name, _ in within)
    for name, one in result.by_precision.items():
        values = [value for (n, _), value in within.items() if n == name]
        assert one.num_within == one.num_measured == len(values)
        assert (one.best is None) == (not values)
        if values:
            assert one.best.quality.value == (max if higher else min)(values)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(1.2, 8.0), st.floats(0, 50), st.floats(0, 50))
def test_constant_losses_are_learned_from_two_pairs_of_each(model, costs, every, seed, limit_ms, int8, int4):
    """If precisions lose alike everywhere, four measurements find what enumeration finds."""
    rng, losses = random.Random(seed), {"fp32": 0.0, "int8": int8, "int4": int4}
    floats = {subnet: rng.uniform(0, 100) for subnet in every}
    asked = []

    def lowered(name, subnet):
        asked.append((name, subnet))
        return quality(floats[subnet] - losses[name])

    result = joint(
        model,
        f"{limit_ms}ms",
        lambda s: quality(floats[s]),
        precisions(costs, lowered),
        num_candidates=200,
        num_lowered=50,
    )
    best = max(
        floats[s] - losses[n] for n, s in itertools.product(FACTORS, every) if costs[n].cost(s).latency_ms <= limit_ms
    )
    assert result.best.quality.value == pytest.approx(best)
    assert len(asked) == len(set(asked)) == result.num_lowered <= 4
    for name in ("int8", "int4"):
        if result.by_precision[name].best is not None:
            assert result.by_precision[name].loss == pytest.approx(losses[name])
        if result.by_precision[name].error is not None:
            assert result.by_precision[name].error == pytest.approx(0, abs=1e-9)


def test_measurements_go_to_the_precision_that_is_ahead(model, costs, every):
    """int8 loses little, and not always the same; int4 much."""
    rng, counts = random.Random(3), dict.fromkeys(FACTORS, 0)

    def lowered(name, subnet):
        counts[name] += 1
        return quality(90 + 0.2 * true_ms(subnet) - (rng.uniform(0, 1) if name == "int8" else 9.0))

    result = joint(
        model,
        "3ms",
        lambda s: quality(90 + 0.2 * true_ms(s)),
        precisions(costs, lowered),
        num_candidates=200,
        num_lowered=8,
    )
    assert result.best.precision == "int8"
    assert counts["int4"] <= 2 < counts["int8"]
    assert result.num_lowered == sum(counts.values()) <= 8


def test_the_number_of_measurements_is_kept_but_each_precision_has_one(model, costs):
    result = joint(
        model,
        "8ms",
        lambda s: quality(1.0),
        precisions(costs, lambda name, s: quality(2.0)),
        num_candidates=8,
        num_lowered=1,
    )
    assert result.num_lowered == 2
    assert [one.num_measured for one in result.by_precision.values()][1:] == [1, 1]
    # Between equals the faster wins.
    fastest = min((p for p in result.measured if p.quality.value == 2.0), key=lambda p: p.cost.latency_ms)
    assert result.best == fastest


def test_a_budget_that_only_one_precision_meets(model, costs):
    space = get_elastic(model).resolved
    limit = 0.9 * true_ms(space.smallest)
    result = joint(model, f"{limit}ms", lambda s: quality(90.0), precisions(costs, lambda name, s: quality(80.0)))
    assert result.best.precision != "fp32"
    assert "no subnet has latency of at most" in result.by_precision["fp32"].reason
    with pytest.raises(BudgetError, match=f"the smallest has {0.4 * true_ms(space.smallest):.3g} ms"):
        joint(model, "1us", lambda s: quality(90.0), precisions(costs, None))


def test_a_share_is_of_the_largest_where_it_is_slowest(model, costs):
    space = get_elastic(model).resolved
    for names in (("fp32", "int8"), ("int8", "fp32")):
        result = joint(
            model,
            "50%",
            lambda s: quality(90.0),
            precisions(costs, lambda name, s: quality(80.0), names),
            num_lowered=1,
        )
        assert result.limits.values["latency"] == pytest.approx(true_ms(space.largest) / 2, rel=1e-3)


def test_what_cannot_be_lowered_is_said(model, costs):
    def refuse(name, subnet):
        raise CheckError(f"no {name} of this")

    result = joint(model, "8ms", lambda s: quality(90.0), precisions(costs, refuse))
    assert result.best.precision == "fp32"
    assert result.by_precision["int8"].reason == "no int8 of this"
    assert result.num_lowered == 4  # Two of each are enough to give it up.
    with pytest.raises(CheckError, match="int8: no int8 of this; int4: no int4 of this"):
        joint(model, "8ms", lambda s: quality(90.0), precisions(costs, refuse, ("int8", "int4")))
    broken = joint(
        model,
        "8ms",
        lambda s: quality(90.0),
        precisions(costs, lambda name, s: replace(quality(1.0), value=float("nan"))),
    )
    assert broken.by_precision["int4"].reason == "its accuracy is not a finite number"
