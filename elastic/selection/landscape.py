"""What a Pareto front is taken from: named subnets, a spread of others, and the predicted best at many budgets."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from elastic.cost import CostModel, Limits
from elastic.selection.candidates import MAX_MIXTURES, Candidate, thinned
from elastic.selection.measured import Measured, Quality
from elastic.selection.optimal import predicted_best
from elastic.selection.pareto import COSTS
from elastic.selection.predictor import Predictor, fit_predictor
from elastic.selection.search import Memory, Progress, measure_all, seen_besides, with_expected
from elastic.selection.shrinkage import fit_shrinkage
from elastic.space import ResolvedSpace, Subnet

LandscapeMethod = Literal["predictor", "heuristic"]
LANDSCAPE_METHODS: tuple[LandscapeMethod, ...] = get_args(LandscapeMethod)
NO_LIMITS = Limits({})


def measure_landscape(
    space: ResolvedSpace,
    cost_model: CostModel,
    evaluate: Callable[[Subnet], Quality],
    granularities: Mapping[str, Subnet],
    *,
    costs: Sequence[str] = ("flops",),
    limits: Limits = NO_LIMITS,
    method: LandscapeMethod = "predictor",
    num_candidates: int = 60,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[Measured]:
    """Measure the subnets that a Pareto plot shows; those of `landscape` first.

    - ``predictor``: a third of them are the subnets of which most is predicted at budgets evenly over the range of each
      cost, as `search` would find them; what was measured for the predictor is shown too, and of every subnet the
      quality that is expected on other examples (`Shrinkage`), where qualities tell their noise.
    - ``heuristic``: all are granularities, uniform subnets and minimum-slope mixes.

    Args:
        space: of which subnets.
        cost_model: what they cost.
        evaluate: measures a subnet on held-out data.
        granularities: the named subnets.
        costs: over which the front will be (see `pareto_front`).
        limits: what any of them may cost.
        method: where they come from.
        num_candidates: how many are measured at most beside the granularities and what the predictor needs.
        seed: of random draws.
        on_progress: called after each measurement.
    """
    measure = Memory(evaluate)
    predictor, optima = None, []
    if method == "predictor":
        predictor = fit_predictor(space, measure, seed=seed, on_progress=on_progress)
    if predictor is not None:
        optima = _optima(space, cost_model, predictor, costs, limits, num_candidates // 3)
    found = landscape(space, cost_model, granularities, num_candidates - len(optima), seed=seed)
    points = measure_all([c for c in found if limits.met_by(c.cost)], measure, on_progress)
    known = {point.subnet for point in points}
    points += measure_all([c for c in optima if c.subnet not in known], measure, on_progress)
    known |= {point.subnet for point in points}
    points += seen_besides(known, measure, space, cost_model, limits)
    return with_expected(points, None if predictor is None else fit_shrinkage(predictor, measure.seen))


def landscape(
    space: ResolvedSpace,
    cost_model: CostModel,
    granularities: Mapping[str, Subnet],
    num_candidates: int,
    *,
    seed: int = 0,
) -> list[Candidate]:
    """Return granularities, uniform subnets, and minimum-slope mixes over the range of costs."""
    found = {s: Candidate(s, cost_model.cost(s), "granularity", name) for name, s in granularities.items()}
    rng = random.Random(seed)
    uniform = [s for s in space.uniform_subnets() if s not in found]
    num_uniform = min(len(uniform), num_candidates // 2)
    for subnet in rng.sample(uniform, num_uniform):
        found[subnet] = Candidate(subnet, cost_model.cost(subnet), "uniform")
    mixtures = [s for s in thinned(space.min_slope_mixtures(), MAX_MIXTURES, rng) if not s.is_uniform]
    mixtures = [s for s in mixtures if s not in found]
    by_cost = sorted((Candidate(s, cost_model.cost(s), "mix") for s in mixtures), key=lambda c: c.cost.flops)
    num_mixes = min(len(by_cost), num_candidates - num_uniform)
    for index in range(num_mixes):
        candidate = by_cost[index * (len(by_cost) - 1) // max(num_mixes - 1, 1)]
        found.setdefault(candidate.subnet, candidate)
    return list(found.values())


def _optima(
    space: ResolvedSpace,
    cost_model: CostModel,
    predictor: Predictor,
    costs: Sequence[str],
    limits: Limits,
    count: int,
) -> list[Candidate]:
    """Return the predicted best at budgets evenly between what the smallest and the largest subnet cost."""
    smallest, largest = cost_model.cost(space.smallest), cost_model.cost(space.largest)
    steps = count // len(costs)
    found: dict[Subnet, None] = {}
    for name in costs:
        least, most = getattr(smallest, name), getattr(largest, name)
        for step in range(1, steps + 1):
            budget = COSTS[name]
            level = least + (most - least) * step / steps
            within = Limits({**limits.values, budget: min(level, limits.values.get(budget, level))})
            found.update((optimum.subnet, None) for optimum in predicted_best(space, cost_model, within, predictor, 1))
    return [Candidate(s, cost_model.cost(s), "uniform" if s.is_uniform else "mix") for s in found]
