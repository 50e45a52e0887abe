"""The optimum under a predictor is what enumeration finds, for any mix of budgets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.cost import Budget, CostModel
from elastic.nested import get_elastic, make_elastic
from elastic.selection.optimal import predicted_best
from elastic.selection.predictor import Predictor, choices_of, single_changes
from elastic.space import SearchSpace
from tests.tiny import tiny_bert, tiny_llama, tiny_vit

SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[2, 3], attention=[2, 3])
SHAPES = {"vit": {"pixel_values": (1, 1, 8, 8)}, "bert": {"input_ids": (1, 12)}, "llama": {"input_ids": (1, 12)}}
BUILD = {"vit": tiny_vit, "bert": tiny_bert, "llama": tiny_llama}


@pytest.fixture(scope="module", params=sorted(BUILD))
def problem(request):
    model = make_elastic(BUILD[request.param](), SPACE)
    space = get_elastic(model).resolved
    costs = CostModel.of(model, SHAPES[request.param])
    return space, costs, _Quiet({subnet: costs.cost(subnet) for subnet in every_subnet(space)})


class _Quiet(dict):
    def __repr__(self):
        return "every subnet with its cost"


def every_subnet(space):
    rng = random.Random(0)
    found = set()
    while len(found) < space.num_subnets:
        found.update(space.sample(rng) for _ in range(200))
    return sorted(found, key=lambda subnet: (subnet.ffn, subnet.heads))


def random_predictor(space, seed):
    rng = random.Random(seed)
    effects = {choice: rng.uniform(-5, 1) for choice in single_changes(space)}
    return Predictor(50.0, effects, error=0.0, rank_correlation=1.0, num_measured=0)


shares = st.one_of(st.none(), st.integers(40, 100))


@settings(max_examples=12)
@given(st.integers(0, 10_000), shares, shares, shares)
def test_equal_to_enumeration(problem, seed, flops, params, memory):
    space, costs, every = problem
    given_limits = {"flops": flops, "params": params, "memory": memory}
    budget = Budget(
        **{name: f"{share}%" for name, share in given_limits.items() if share is not None} or {"flops": "70%"}
    )
    limits = budget.limits(costs.cost(space.largest))
    predictor = random_predictor(space, seed)
    within = [subnet for subnet, cost in every.items() if limits.met_by(cost)]
    found = predicted_best(space, costs, limits, predictor, 3)
    assert bool(found) == bool(within)
    if within:
        ranked = sorted((predictor(subnet) for subnet in within), reverse=True)
        assert limits.met_by(every[found[0].subnet])
        assert found[0].predicted == pytest.approx(predictor(found[0].subnet))
        # The solver's gap of 1e-4 is of the sum of effects.
        assert [o.predicted for o in found] == pytest.approx(ranked[: len(found)], abs=0.01)
        assert found[0].bound >= ranked[0] - 1e-6


def test_single_changes_are_all_choices_that_subnets_make(problem):
    space, _, every = problem
    made = {choice for subnet in every for choice in choices_of(subnet)}
    of_largest = set(choices_of(space.largest))
    assert set(single_changes(space)) == made - of_largest
