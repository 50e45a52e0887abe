"""Budgets of latency are limits like the others: the optimum is what enumeration finds."""

from __future__ import annotations

import random

import pytest

from elastic.cost import Budget, CostModel, DecoderCostModel, Phase
from elastic.errors import BudgetError
from elastic.nested import get_elastic, make_elastic
from elastic.selection import search
from elastic.selection.optimal import predicted_best
from elastic.selection.pareto import pareto_front
from elastic.selection.predictor import Predictor, single_changes
from elastic.space import SearchSpace
from tests.latency import one_axis_each, read_table, true_ms
from tests.selection.points import point
from tests.tiny import tiny_llama, tiny_vit

SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[2, 3], attention=[2, 3])
SHAPES = {"pixel_values": (1, 1, 8, 8)}


@pytest.fixture(scope="module")
def model():
    return make_elastic(tiny_vit(), SPACE)


@pytest.fixture
def table(model, tmp_path):
    return read_table(tmp_path / "t.json", one_axis_each(get_elastic(model).resolved), SHAPES)


@pytest.mark.parametrize(
    ("latency", "energy", "params"), [("70%", None, None), ("60%", "25mJ", None), ("8ms", None, "80%")]
)
def test_equal_to_enumeration(model, table, latency, energy, params):
    space, costs = get_elastic(model).resolved, CostModel.of(model, SHAPES).with_table(table)
    rng = random.Random(1)
    effects = {choice: rng.uniform(-5, 1) for choice in single_changes(space)}
    predictor = Predictor(50.0, effects, error=0.0, rank_correlation=1.0, num_measured=0)
    limits = Budget(latency=latency, energy=energy, params=params).limits(costs.cost(space.largest))
    every = {space.sample(rng) for _ in range(20 * space.num_subnets)}
    within = [subnet for subnet in every if limits.met_by(costs.cost(subnet))]
    found = predicted_best(space, costs, limits, predictor, 1)[0]
    assert len(every) == space.num_subnets
    assert limits.met_by(costs.cost(found.subnet))
    assert found.predicted == pytest.approx(max(predictor(subnet) for subnet in within), abs=0.01)
    assert true_ms(found.subnet) <= limits.values["latency"] * 1.001


def test_search_with_a_table(model, table):
    result = search(model, Budget(latency="8ms"), lambda s: sum(s.ffn) + sum(s.heads), table=table, num_candidates=6)
    assert result.best.cost.latency_ms <= 8
    assert result.best.cost.device.startswith("Toaster")
    assert max(point.cost.latency_ms for point in result.measured) <= 8
    assert str(result.limits) == "latency <= 8 ms"
    with pytest.raises(BudgetError, match="needs a latency table"):
        search(model, Budget(latency="8ms"), lambda subnet: 0.0)
    with pytest.raises(BudgetError, match="was not measured at pixel_values 2x1x8x8"):
        search(model, Budget(latency="8ms"), lambda s: 0.0, table=table, input_shapes={"pixel_values": (2, 1, 8, 8)})


def test_a_decoding_step_needs_a_table_of_decoding_steps(tmp_path):
    model = make_elastic(tiny_llama(), SPACE)
    costs = DecoderCostModel(type(model), model.config, Phase("decode", 20))
    table = read_table(tmp_path / "t.json", one_axis_each(get_elastic(model).resolved), {"input_ids": (1, 1)})
    with pytest.raises(BudgetError, match="not measured at input_ids 1x1 after 20 cached tokens"):
        costs.with_table(table)
    rows = tuple(row.model_copy(update={"sizes": {"batch": 1, "past": 20}}) for row in table.measured)
    cost = costs.with_table(table.model_copy(update={"measured": rows})).cost(get_elastic(model).resolved.smallest)
    assert cost.latency_ms == pytest.approx(true_ms(get_elastic(model).resolved.smallest), rel=1e-4)
    assert cost.cache_bytes > 0


def test_fronts_over_latency_need_a_table():
    with pytest.raises(BudgetError, match="latency_ms comes from a latency table"):
        pareto_front([point()], "latency_ms")


def test_a_table_need_not_tell_what_is_not_in_the_space(tmp_path):
    """Where layers leave whole, the predictor still measures layers without attention."""
    model = make_elastic(tiny_vit(), SearchSpace(ffn=[0.5, 1.0], layers=[2, 3]))
    space = get_elastic(model).resolved
    table = read_table(tmp_path / "t.json", one_axis_each(space), SHAPES)
    result = search(model, Budget(latency="99%"), lambda s: sum(s.ffn) + sum(s.heads), table=table, num_candidates=4)
    assert all(point.subnet in space for point in result.measured)
    assert result.best.cost.latency_ms < true_ms(space.largest)
