"""Search: the best subnet within a budget, chosen by measured quality alone."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from elastic.cost import Budget, Cost, CostModel, InputShapes, Limits
from elastic.errors import CheckError
from elastic.families import input_shapes
from elastic.nested import get_elastic
from elastic.selection.measured import Measured, Quality
from elastic.space import ResolvedSpace, Subnet

MAX_MIXTURES = 5_000
NUM_RANDOM = 500

Evaluate = Callable[[Subnet], Quality | float]
"""Measures a subnet on held-out data; a plain number means that higher is better."""

Progress = Callable[[int, int], None]
"""Called with how many candidates are measured, and how many there are."""


@dataclass(frozen=True)
class SearchResult:
    """The best subnet within the budget, and all that were measured, best first."""

    best: Measured
    measured: Sequence[Measured]
    limits: Limits


def search(
    model: PreTrainedModel,
    budget: Budget,
    evaluate: Evaluate,
    *,
    input_shapes: InputShapes | None = None,
    uniform_only: bool = False,
    num_candidates: int = 48,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Return the subnet of a universal model with the best measured quality within ``budget``.

    Candidates are the uniform subnets and the per-layer ones of the minimum-slope heuristic and of
    a random draw that come closest to the budget. Each is measured; between equals, the cheaper wins.

    Args:
        model: a universal model.
        budget: what the subnet may cost.
        evaluate: measures a subnet; it must not use test data.
        input_shapes: for which costs are computed; by default `default_input_shapes`.
        uniform_only: leave per-layer subnets out, so that stock transformers loads the result.
        num_candidates: how many subnets are measured at most.
        seed: of the random draw.
        on_progress: called after each measurement.

    Raises:
        BudgetError: if no subnet meets the budget; names what the smallest needs.
        CheckError: if no measured quality is a finite number.
    """
    space = get_elastic(model).resolved
    cost_model = CostModel.of(model, input_shapes or default_input_shapes(model))
    limits = budget.limits(cost_model.cost(space.largest))
    limits.check_reachable(cost_model.cost(space.smallest))
    found = candidates(space, cost_model, limits, num_candidates, uniform_only=uniform_only, seed=seed)
    measured = measure_all(found, evaluate, on_progress)
    ranked = sorted(measured, key=rank)
    if not math.isfinite(ranked[0].quality.value):
        raise CheckError(f"none of {len(ranked)} measured subnets has a finite quality; the model has diverged.")
    return SearchResult(best=ranked[0], measured=ranked, limits=limits)


def rank(point: Measured) -> tuple[float, int]:
    """Sort key that puts the best quality first, and among equals the fewest FLOPs; last what is not finite."""
    value = point.quality.value
    if not math.isfinite(value):
        return math.inf, point.cost.flops
    return (-value if point.quality.higher_is_better else value, point.cost.flops)


@dataclass(frozen=True)
class Candidate:
    """A subnet that a search may measure."""

    subnet: Subnet
    cost: Cost
    kind: str
    name: str = ""


def candidates(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    num_candidates: int,
    *,
    uniform_only: bool = False,
    seed: int = 0,
) -> list[Candidate]:
    """Return the subnets that use most of the budget; half of them uniform, as far as there are so many."""
    uniform = _closest(space.uniform_subnets(), cost_model, limits, "uniform")
    if uniform_only:
        return uniform[:num_candidates]
    seen = {candidate.subnet for candidate in uniform}
    rng = random.Random(seed)
    mixtures = _thinned(space.min_slope_mixtures(), MAX_MIXTURES, rng)
    drawn = (space.sample(rng) for _ in range(NUM_RANDOM))
    pool = dict.fromkeys(s for s in itertools.chain(mixtures, drawn) if s not in seen)
    mixes = _closest(pool, cost_model, limits, "mix")
    num_mixes = min(len(mixes), max(num_candidates // 2, num_candidates - len(uniform)))
    return [*uniform[: num_candidates - num_mixes], *mixes[:num_mixes]]


def _closest(subnets: Iterable[Subnet], cost_model: CostModel, limits: Limits, kind: str) -> list[Candidate]:
    found = [Candidate(subnet, cost_model.cost(subnet), kind) for subnet in subnets]
    within = [candidate for candidate in found if limits.met_by(candidate.cost)]
    return sorted(within, key=lambda candidate: -limits.closeness(candidate.cost))


def _thinned(subnets: Iterable[Subnet], limit: int, rng: random.Random) -> list[Subnet]:
    """At most ``limit`` of a stream that may be long, each with the same chance."""
    kept: list[Subnet] = []
    for index, subnet in enumerate(itertools.islice(subnets, 20 * limit)):
        if len(kept) < limit:
            kept.append(subnet)
        elif (place := rng.randrange(index + 1)) < limit:
            kept[place] = subnet
    return kept


def measure_all(found: Sequence[Candidate], evaluate: Evaluate, on_progress: Progress | None = None) -> list[Measured]:
    """Measure every candidate."""
    measured = []
    for index, candidate in enumerate(found):
        quality = evaluate(candidate.subnet)
        if not isinstance(quality, Quality):
            quality = Quality("quality", float(quality), higher_is_better=True, split="held out", num_examples=0)
        measured.append(Measured(candidate.subnet, candidate.cost, quality, candidate.kind, candidate.name))
        if on_progress:
            on_progress(index + 1, len(found))
    return measured


def landscape(
    space: ResolvedSpace,
    cost_model: CostModel,
    granularities: Mapping[str, Subnet],
    num_candidates: int,
    *,
    seed: int = 0,
) -> list[Candidate]:
    """Return the subnets that a Pareto plot shows: granularities, uniform ones, and mixes over the range of costs."""
    found = {s: Candidate(s, cost_model.cost(s), "granularity", name) for name, s in granularities.items()}
    rng = random.Random(seed)
    uniform = [s for s in space.uniform_subnets() if s not in found]
    num_uniform = min(len(uniform), num_candidates // 2)
    for subnet in rng.sample(uniform, num_uniform):
        found[subnet] = Candidate(subnet, cost_model.cost(subnet), "uniform")
    mixtures = [s for s in _thinned(space.min_slope_mixtures(), MAX_MIXTURES, rng) if not s.is_uniform]
    mixtures = [s for s in mixtures if s not in found]
    by_cost = sorted((Candidate(s, cost_model.cost(s), "mix") for s in mixtures), key=lambda c: c.cost.flops)
    num_mixes = min(len(by_cost), num_candidates - num_uniform)
    for index in range(num_mixes):
        candidate = by_cost[index * (len(by_cost) - 1) // max(num_mixes - 1, 1)]
        found.setdefault(candidate.subnet, candidate)
    return list(found.values())


def default_input_shapes(model: PreTrainedModel) -> InputShapes:
    """Return the shapes of one example: one image or spectrogram, or 128 tokens (fewer if the model takes no more)."""
    return input_shapes(model.config)
