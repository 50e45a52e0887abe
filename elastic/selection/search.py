"""Search: the best subnet within a budget, of those that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from transformers import PreTrainedModel

from elastic.cost import Budget, CostModel, InputShapes, LatencyTable, Limits
from elastic.errors import BudgetError, CheckError
from elastic.families import input_shapes
from elastic.nested import get_elastic
from elastic.selection.candidates import (
    Candidate,
    candidates,
    every_other_candidates,
    neighbours,
    random_candidates,
    uniform_candidates,
)
from elastic.selection.evolution import evolve
from elastic.selection.measured import Measured, Quality
from elastic.selection.optimal import predicted_best
from elastic.selection.predictor import Predictor, fit_predictor
from elastic.selection.shrinkage import Shrinkage, fit_shrinkage
from elastic.space import ResolvedSpace, SearchSpace, Subnet

Evaluate = Callable[[Subnet], Quality | float]
"""Measures a subnet on held-out data; a plain number means that higher is better."""

Progress = Callable[[int, int], None]
"""Called with how many candidates are measured, and how many there are."""


Method = Literal["predictor", "heuristic", "uniform", "every-other", "random", "evolution"]
METHODS: tuple[Method, ...] = get_args(Method)
MAX_REFINED = 24
"""How many neighbours of the best are measured at most."""


@dataclass(frozen=True)
class SearchResult:
    """The best subnet within the budget, and all within it that were measured, best first."""

    best: Measured
    measured: Sequence[Measured]
    limits: Limits
    num_evaluations: int
    """How many different subnets were measured, those over the budget included."""
    predictor: Predictor | None = None
    """What the candidates were predicted with, and its error."""
    predicted_bound: float | None = None
    """No subnet within the budget is predicted to be better than this."""
    shrinkage: Shrinkage | None = None
    """How the qualities that are expected on other examples were estimated."""


def search(
    model: PreTrainedModel,
    budget: Budget | Limits,
    evaluate: Evaluate,
    *,
    input_shapes: InputShapes | None = None,
    cost_model: CostModel | None = None,
    table: LatencyTable | None = None,
    method: Method = "predictor",
    accept: Callable[[Subnet], bool] = lambda subnet: True,
    num_candidates: int = 48,
    within: SearchSpace | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Return the best measured subnet of a universal model within ``budget``.

    Every method measures its candidates; between equals, the cheaper wins.

    - ``predictor``: single changes of the largest subnet and some random subnets are measured first, a predictor
      is fitted to them, and its optimum within the budget, with those next to it, is found exactly. They are
      measured together with the candidates of the heuristic, and then the neighbours of the best. Where qualities tell
      their noise (`Quality.halves`), the best is that of which most is expected on other examples (`Shrinkage`).
    - ``heuristic``: uniform subnets and the per-layer ones of the minimum-slope rule (MatFormer, arXiv
      2310.07707, section 3.3) and of a random draw that come closest to the budget.
    - ``uniform``: uniform subnets alone, of those that ``accept`` takes.
    - ``every-other``: whole layers, evenly spaced (LayerDrop, arXiv 1909.11556, section 3.2).
    - ``random``: random subnets within the budget.
    - ``evolution``: random subnets, then crossovers and mutations of the best (see `elastic.selection.evolution`).

    Args:
        model: a universal model.
        budget: what the subnet may cost; percentages are of the largest subnet.
        evaluate: measures a subnet; it must not use test data.
        input_shapes: for which costs are computed; by default `default_input_shapes`.
        cost_model: predicts costs, instead of one for ``input_shapes``: of a phase of a decoder, for example.
        table: of the device that the subnet is for; needed where the budget limits latency or energy.
        method: how candidates are found.
        accept: for ``uniform``: which subnets are wanted, such as those that stock transformers loads.
        num_candidates: how many of them are measured at most, besides what the predictor needs.
        within: only these choices of the model's space, such as one number of embedding dimensions.
        multiple_of: take only FFN widths and hidden sizes that are multiples of this (and the model's own), because
            hardware computes in tiles.
        seed: of random draws.
        on_progress: called after each measurement.

    Raises:
        SpaceError: if ``within`` has choices that the model's space has not.
        BudgetError: if no subnet meets the budget (names what the smallest needs), or the table does not tell what
            the subnets need (names one to measure).
        CheckError: if no measured quality is a finite number.
    """
    space = searched_space(model, within, multiple_of)
    costs = cost_model or CostModel.of(model, input_shapes or default_input_shapes(model))
    cost_model = _with_table(costs, table, space)
    largest = get_elastic(model).resolved.largest
    limits = budget if isinstance(budget, Limits) else budget.limits(cost_model.cost(largest))
    limits.check_reachable(cost_model.cost(space.smallest))
    measure = Memory(evaluate)
    predictor, shrinkage, optima = None, None, []
    if method == "predictor":
        predictor = fit_predictor(space, measure, seed=seed, on_progress=on_progress)
        optima = [] if predictor is None else predicted_best(space, cost_model, limits, predictor, num_candidates // 4)
    elif method not in METHODS:
        raise BudgetError(f"the search method '{method}' is not one of {', '.join(METHODS)}.")
    best_predicted = [Candidate(optimum.subnet, cost_model.cost(optimum.subnet), "mix") for optimum in optima]
    if method == "evolution":
        points = evolve(
            space, cost_model, limits, measure, rank, num_evaluations=num_candidates, seed=seed, on_progress=on_progress
        )
    else:
        found = _candidates(method, space, cost_model, limits, num_candidates, accept, seed, best_predicted)
        points = measure_all(found, measure, on_progress)
    measured = {point.subnet: point for point in points}
    if predictor is not None:
        _refine(space, cost_model, limits, predictor, measure, measured)
        measured |= {point.subnet: point for point in seen_besides(measured, measure, space, cost_model, limits)}
        shrinkage = fit_shrinkage(predictor, measure.seen)
    ranked = sorted(with_expected(measured.values(), shrinkage), key=rank)
    if not ranked:
        raise BudgetError(f"no subnet was found with {limits}; try another method or more candidates.")
    if not math.isfinite(ranked[0].quality.value):
        raise CheckError(f"none of {len(ranked)} measured subnets has a finite quality; the model has diverged.")
    bound = optima[0].bound if optima else None
    return SearchResult(ranked[0], ranked, limits, len(measure.seen), predictor, bound, shrinkage)


def seen_besides(
    known: Container[Subnet], measure: Memory, space: ResolvedSpace, cost_model: CostModel, limits: Limits
) -> list[Measured]:
    """Return what was measured within the space and the budget besides the subnets that are known."""
    found = []
    for subnet, quality in measure.seen.items():
        # Single changes leave the space where layers leave whole, and no table needs to tell what those cost.
        if subnet not in known and subnet in space and limits.met_by(cost := cost_model.cost(subnet)):
            found.append(Measured(subnet, cost, quality, "uniform" if subnet.is_uniform else "mix"))
    return found


def with_expected(points: Iterable[Measured], shrinkage: Shrinkage | None) -> list[Measured]:
    """Return the points with the quality that is expected of them, where that is known."""
    if shrinkage is None:
        return list(points)
    return [replace(point, expected=shrinkage(point.subnet, point.quality)) for point in points]


def searched_space(model: PreTrainedModel, within: SearchSpace | None, multiple_of: int) -> ResolvedSpace:
    """Return the part of a model's space that is searched.

    Raises:
        SpaceError: if ``within`` has choices that the model's space has not.
    """
    return get_elastic(model).resolved.within(within or SearchSpace()).aligned(multiple_of)


def _with_table(cost_model: CostModel, table: LatencyTable | None, space: ResolvedSpace) -> CostModel:
    if table is not None:
        cost_model = cost_model.with_table(table)
    if cost_model.latency is not None:
        cost_model.latency.check_covers(space)
    return cost_model


def _candidates(
    method: Method,
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    count: int,
    accept: Callable[[Subnet], bool],
    seed: int,
    predicted: Sequence[Candidate],
) -> list[Candidate]:
    """Return what a method measures; that of the predictor adds the candidates of the heuristic to what it predicts."""
    if method == "random":
        return random_candidates(space, cost_model, limits, count, seed)
    if method == "uniform":
        return uniform_candidates(space, cost_model, limits, count, accept)
    if method == "every-other":
        return every_other_candidates(space, cost_model, limits)[:count]
    chosen = {candidate.subnet for candidate in predicted}
    others = candidates(space, cost_model, limits, count - len(predicted), seed=seed)
    return [*predicted, *(candidate for candidate in others if candidate.subnet not in chosen)]


class Memory:
    """Measures each subnet once."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.seen: dict[Subnet, Quality] = {}

    def __call__(self, subnet: Subnet) -> Quality:
        """Return the quality of a subnet."""
        if subnet not in self.seen:
            quality = self._evaluate(subnet)
            if not isinstance(quality, Quality):
                quality = Quality("quality", float(quality), higher_is_better=True, split="held out", num_examples=0)
            self.seen[subnet] = quality
        return self.seen[subnet]


def _refine(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    predictor: Predictor,
    measure: Memory,
    measured: dict[Subnet, Measured],
) -> None:
    """Climb from the best: measure those neighbours within the budget of which most is predicted, while it helps."""
    left = MAX_REFINED
    while left > 0 and measured:
        best = min(measured.values(), key=rank)
        within = [s for s in neighbours(space, best.subnet) if s not in measured and limits.met_by(cost_model.cost(s))]
        tried = sorted(within, key=predictor, reverse=True)[: min(left, MAX_REFINED // 3)]
        left -= len(tried)
        for subnet in tried:
            measured[subnet] = Measured(subnet, cost_model.cost(subnet), measure(subnet), "mix")
        if not tried or min(measured.values(), key=rank) is best:
            return


def rank(point: Measured) -> tuple[float, int]:
    """Sort key that puts the best quality first, and among equals the fewest FLOPs; last what is not finite."""
    return (-point.score if math.isfinite(point.quality.value) else math.inf, point.cost.flops)


def measure_all(
    found: Sequence[Candidate], measure: Callable[[Subnet], Quality], on_progress: Progress | None = None
) -> list[Measured]:
    """Measure every candidate."""
    measured = []
    for index, candidate in enumerate(found):
        quality = measure(candidate.subnet)
        measured.append(Measured(candidate.subnet, candidate.cost, quality, candidate.kind, candidate.name))
        if on_progress:
            on_progress(index + 1, len(found))
    return measured


def default_input_shapes(model: PreTrainedModel) -> InputShapes:
    """Return the shapes of one example: one image or spectrogram, or 128 tokens (fewer if the model takes no more)."""
    return input_shapes(model.config)
