"""Search: within the budget, measured, the best first; errors that name the smallest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.cost import Budget, CostModel, format_quantity, parse_quantity
from elastic.errors import BudgetError, CheckError, SpaceError
from elastic.nested import get_elastic
from elastic.selection import default_input_shapes, search
from elastic.selection.candidates import neighbours
from elastic.space import ModelDims, SearchSpace, Subnet


def size(subnet: Subnet) -> float:
    return sum(subnet.ffn) + sum(subnet.heads)


def test_best_within_the_budget(universal):
    cost_model = CostModel.of(universal, default_input_shapes(universal))
    resolved = get_elastic(universal).resolved
    largest = cost_model.cost(resolved.largest)
    result = search(universal, Budget(flops="70%"), size, num_candidates=20)
    assert result.num_evaluations >= len(result.measured)
    assert result.best.quality.value == max(size(point.subnet) for point in result.measured)
    assert all(point.cost.flops <= 0.7 * largest.flops for point in result.measured)
    assert all(point.cost == cost_model.cost(point.subnet) for point in result.measured)
    assert all(point.subnet in resolved for point in result.measured)
    # It should come near to the best of many random subnets that meet the budget.
    rng = random.Random(1)
    drawn = [resolved.sample(rng) for _ in range(300)]
    best = max(size(s) for s in drawn if cost_model.cost(s).flops <= 0.7 * largest.flops)
    assert result.best.quality.value >= 0.95 * best


@pytest.mark.parametrize("method", ["heuristic", "uniform", "every-other", "random", "evolution"])
def test_other_methods_measure_no_more_than_asked(universal, method):
    result = search(universal, Budget(flops="70%"), size, method=method, num_candidates=20)
    assert len(result.measured) <= 20
    assert result.num_evaluations == len(result.measured)
    assert result.predictor is None


def test_an_additive_quality_is_solved_exactly(universal):
    """Where effects add up, the predictor knows them all, and no subnet is better than what search returns."""
    resolved = get_elastic(universal).resolved
    cost_model = CostModel.of(universal, default_input_shapes(universal))
    weights = random.Random(5)
    worth = {(axis, i): weights.uniform(0.1, 3) for axis in ("ffn", "heads") for i in range(3)}

    def quality(subnet):
        return sum(worth["ffn", i] * f / 64 + worth["heads", i] * h / 4
                   for i, (f, h) in enumerate(zip(subnet.ffn, subnet.heads, strict=True)))  # fmt: skip

    result = search(universal, Budget(flops="75%"), quality)
    limit = 0.75 * cost_model.cost(resolved.largest).flops
    drawn = [resolved.sample(random.Random(seed)) for seed in range(2000)]
    best = max(quality(s) for s in drawn if cost_model.cost(s).flops <= limit)
    assert result.best.quality.value >= best - 1e-6
    assert result.predictor.rank_correlation > 0.99
    assert result.predicted_bound >= result.best.quality.value - 0.01


def test_interactions_are_found_by_climbing(universal):
    """The predictor cannot see that equal widths are better together; measuring neighbours can."""
    resolved = get_elastic(universal).resolved

    def quality(subnet):
        return size(subnet) - 5.0 * len({f for f in subnet.ffn if f})

    result = search(universal, Budget(flops="80%"), quality)
    climbed = [s for s in neighbours(resolved, result.best.subnet)]
    assert climbed
    assert all(s.num_layers == 3 for s in climbed)


def test_neighbours_differ_by_one_step_or_a_swap(universal):
    resolved = get_elastic(universal).resolved
    subnet = resolved.uniform(ffn=resolved.ffn[1])
    for other in neighbours(resolved, subnet):
        changed = [i for i in range(3) if (other.ffn[i], other.heads[i]) != (subnet.ffn[i], subnet.heads[i])]
        widened = (other.hidden, other.embedding_dim) != (subnet.hidden, subnet.embedding_dim)
        assert not changed if widened else 1 <= len(changed) <= 2
        assert other in resolved


def test_neighbours_step_the_widths_of_the_whole_model():
    dims = ModelDims(2, 64, 4, 4, 32)
    space = SearchSpace(hidden=[8, 16, 32], embedding_dim=[8, 16, 32]).resolve(dims)

    def of(**choices):
        return {(s.hidden, s.embedding_dim) for s in neighbours(space, space.uniform(**choices))}

    assert of() == {(16, None), (None, 16)}
    assert of(hidden=16, embedding_dim=8) == {(8, None), (None, 8), (16, None)}
    assert of(hidden=8) == {(16, None)}


def test_search_is_repeatable(universal):
    first, second = (search(universal, Budget(flops="60%"), size, num_candidates=10, seed=3) for _ in range(2))
    assert first == second


def test_equal_quality_takes_the_cheaper(universal):
    result = search(universal, Budget(flops="80%"), lambda subnet: 1.0)
    assert result.best.cost.flops == min(point.cost.flops for point in result.measured)


def test_uniform_only(universal):
    result = search(universal, Budget(flops="90%"), size, method="uniform")
    assert all(point.kind == "uniform" for point in result.measured)


def test_uniform_takes_only_what_is_accepted(universal):
    resolved = get_elastic(universal).resolved
    result = search(universal, Budget(flops="90%"), size, method="uniform", accept=lambda s: max(s.heads) == 4)
    assert {max(point.subnet.heads) for point in result.measured} == {4}
    with pytest.raises(BudgetError, match="no subnet was found with flops <="):
        search(universal, Budget(flops="90%"), size, method="uniform", accept=lambda s: False)
    assert resolved.dims.heads == 4


def test_several_budgets_hold_together(universal):
    result = search(universal, Budget(flops="90%", params="60%", memory="95%"), size)
    largest = CostModel.of(universal, default_input_shapes(universal)).cost(get_elastic(universal).resolved.largest)
    assert all(point.cost.params <= 0.6 * largest.params for point in result.measured)


def test_a_budget_that_nothing_meets_names_the_smallest(universal):
    smallest = CostModel.of(universal, default_input_shapes(universal)).cost(get_elastic(universal).resolved.smallest)
    with pytest.raises(
        BudgetError, match=rf"no subnet has flops of at most 10; the smallest has .*\({smallest.flops}\)"
    ):
        search(universal, Budget(flops=10), size)


def test_a_quality_that_is_no_number_never_wins(universal):
    values = iter([float("nan"), 1.0, 2.0, *[float("inf")] * 50])
    assert (
        search(universal, Budget(flops="90%"), lambda subnet: next(values), method="heuristic").best.quality.value
        == 2.0
    )
    with pytest.raises(CheckError, match="has a finite quality; the model has diverged"):
        search(universal, Budget(flops="90%"), lambda subnet: float("nan"))


def test_no_budget(universal):
    with pytest.raises(BudgetError, match="no budget is given"):
        search(universal, Budget(), size)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2G", 2e9),
        ("500M", 5e8),
        ("1.5e9", 1.5e9),
        ("64MiB", 64 * 2**20),
        ("60%", 600),
        (" 10k ", 1e4),
        (7, 7),
        ("3kb", 3e3),
    ],
)
def test_quantities(text, value):
    assert parse_quantity(text, of=1000) == value


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1 2", "nan", "0", "1e999", "%"])
def test_quantities_that_are_none(text):
    with pytest.raises(BudgetError, match="is not a budget; write a positive number"):
        parse_quantity(text, of=1000)


@given(st.integers(1, 10**15))
def test_whole_numbers_are_kept_exactly(number):
    assert parse_quantity(number, of=1) == number


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (1234567, "1.23M"), (999_499, "999k"), (999_999, "1M"), (999.9, "1k"), (0, "0")]
)
def test_quantities_as_people_read_them(value, text):
    assert format_quantity(value) == text


@given(st.integers(1, 10**15), st.integers(1, 10**6))
def test_budgets_lose_nothing_to_binary_fractions(of, thousandths):
    assert parse_quantity("100%", of=of) == of
    assert parse_quantity(f"{thousandths / 1000:.3f}k", of=1) == thousandths


def test_evolution_gets_better_and_stays_within(universal):
    """With as many evaluations, children of the best are better than chance."""
    random_best = search(universal, Budget(flops="60%"), size, method="random", num_candidates=8, seed=3).best
    result = search(universal, Budget(flops="60%"), size, method="evolution", num_candidates=40, seed=3)
    resolved = get_elastic(universal).resolved
    assert all(point.subnet in resolved for point in result.measured)
    assert len({point.subnet for point in result.measured}) == len(result.measured) <= 40
    assert result.best.quality.value >= random_best.quality.value


def test_every_other_keeps_whole_layers(universal):
    result = search(universal, Budget(flops="90%"), size, method="every-other")
    full = get_elastic(universal).resolved.largest
    for point in result.measured:
        assert {(f, h) for f, h in zip(point.subnet.ffn, point.subnet.heads, strict=True)} <= {
            (0, 0), (full.ffn[0], full.heads[0])
        }  # fmt: skip
    assert [point.subnet.kept_layers for point in result.measured] == [(0, 2), (0,)]


def test_widths_are_multiples(universal):
    result = search(universal, Budget(flops="80%"), size, multiple_of=32, num_candidates=10)
    assert all(set(point.subnet.ffn) <= {0, 32, 64} for point in result.measured)


def test_nothing_is_a_multiple():
    space = SearchSpace(ffn=[4, 12]).resolve(ModelDims(2, 64, 4, 4, 32))
    with pytest.raises(SpaceError, match=r"no choice of ffn is a multiple of 8; they are \[4, 12\]"):
        space.aligned(8)
    assert SearchSpace(ffn=[4, 64]).resolve(ModelDims(2, 64, 4, 4, 32)).aligned(128).ffn == (64,)
