"""Subnet and precision chosen together: the best pair within one budget, measured as it would be shipped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from elastic.cost import Budget, Cost, CostModel, Limits
from elastic.errors import BudgetError, CheckError
from elastic.nested import get_elastic
from elastic.selection.measured import Measured, Quality
from elastic.selection.search import Evaluate, Memory, Method, Progress, rank, search, searched_space
from elastic.space import SearchSpace, Subnet

NUM_LOWERED = 8
"""Measurements in another precision than float32 by default: each of them exports a model."""
MIN_LOWERED = 2
"""Measurements of one precision before it may be given up: one says nothing of how losses differ."""


@dataclass(frozen=True)
class Precision:
    """A precision that subnets may run in on a device."""

    name: str
    cost_model: CostModel
    """With the latency table of this precision."""
    evaluate: Callable[[Subnet], Quality] | None = None
    """Measures a subnet in this precision, on the same held-out data; None for float32, in which the model runs."""


@dataclass(frozen=True)
class PrecisionResult:
    """What one precision gives within the budget."""

    best: Measured | None
    """None where nothing fits, or nothing that fits could be lowered."""
    num_within: int = 0
    """Subnets within the budget whose quality in float32 is known."""
    num_measured: int = 0
    """How many of them were measured in this precision."""
    loss: float | None = None
    """Mean quality lost to float32 on the same subnets, in units of the metric; None for float32 itself."""
    error: float | None = None
    """Root mean square error of predicting a subnet from its quality in float32 and the mean loss seen before it."""
    reason: str = ""
    """Why there is no best."""


@dataclass(frozen=True)
class JointResult:
    """The best subnet and precision within the budget, and what each precision gives."""

    best: Measured
    by_precision: Mapping[str, PrecisionResult]
    measured: Sequence[Measured]
    """All pairs within the budget that were measured, best first."""
    limits: Limits
    num_evaluations: int
    """How many different subnets were measured in float32."""
    num_lowered: int
    """How many were measured in another precision."""


def joint_search(
    model: PreTrainedModel,
    budget: Budget,
    evaluate: Evaluate,
    precisions: Sequence[Precision],
    *,
    method: Method = "predictor",
    accept: Callable[[Subnet], bool] = lambda subnet: True,
    num_candidates: int = 48,
    num_lowered: int | None = NUM_LOWERED,
    within: SearchSpace | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> JointResult:
    """Return the subnet and the precision that are best together within ``budget``, by measured quality.

    The question is that of SimQ-NAS (arXiv 2312.13301), which predicts pairs from both. Here `search` finds for each
    precision, by its latency table, the subnets that fit, with their qualities in float32, which are cheap to measure.
    A pair is predicted from that quality and the mean loss of the pairs measured so far. Each precision's first
    candidate is measured in it; then always the pair of which most is predicted, until none would be the best even if
    it were lucky: if it lost two standard deviations less than the mean. Only measured pairs count; between equals the
    faster wins.

    Args:
        model: a universal model.
        budget: what the pair may cost. Percentages are of the largest subnet in the precision in which it is slowest.
        evaluate: measures a subnet in float32; it must not use test data.
        precisions: which there are, each with the latencies that subnets have in it.
        method: how candidates are found (see `search`).
        accept: for ``uniform``: which subnets are wanted.
        num_candidates: how many subnets are measured in float32 for each precision (see `search`).
        num_lowered: how many pairs are measured in another precision than float32, one for each at least; None for all.
        within: only these choices of the model's space.
        multiple_of: take only FFN widths and hidden sizes that are multiples of this.
        seed: of random draws.
        on_progress: called after each measurement.

    Raises:
        BudgetError: if no pair meets the budget, or a table does not tell what the subnets need.
        CheckError: if no pair within the budget could be measured.
    """
    space = searched_space(model, within, multiple_of)
    for precision in precisions:
        if precision.cost_model.latency is not None:
            precision.cost_model.latency.check_covers(space)
    limits = budget.limits(_slowest(precisions, get_elastic(model).resolved.largest))
    in_float, races, failed = Memory(evaluate), [], {}
    for precision in precisions:
        try:
            found = search(
                model, limits, in_float, cost_model=precision.cost_model, method=method, accept=accept,
                num_candidates=num_candidates, within=within, multiple_of=multiple_of, seed=seed,
                on_progress=on_progress,
            )  # fmt: skip
        except BudgetError as error:
            failed[precision.name] = error
            continue
        candidates = [point for point in found.measured if math.isfinite(point.quality.value)]
        races.append(_Race(precision, candidates))
    if not races:
        nearest = min(precisions, key=lambda one: one.cost_model.cost(space.smallest).latency_ms or 0.0)
        raise failed[nearest.name]
    count = _run([race for race in races if race.precision.evaluate is not None], races, num_lowered, on_progress)
    measured = sorted((point for race in races for point in race.measured), key=_rank)
    results = {race.precision.name: race.result() for race in races}
    if not measured:
        raise CheckError("; ".join(f"{name}: {result.reason}" for name, result in results.items()))
    results |= {name: PrecisionResult(None, reason=str(error)) for name, error in failed.items()}
    by_precision = {precision.name: results[precision.name] for precision in precisions}
    return JointResult(measured[0], by_precision, measured, limits, len(in_float.seen), count)


@dataclass
class _Race:
    """One precision: its candidates, which are measured from the first on, and what has been learned."""

    precision: Precision
    candidates: list[Measured]
    """By quality in float32, best first."""
    measured: list[Measured] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.precision.evaluate is None:
            self.measured = [replace(point, precision=self.precision.name) for point in self.candidates]

    @property
    def tried(self) -> int:
        """How many candidates have had their turn."""
        return len(self.measured) + len(self.refused)

    @property
    def is_over(self) -> bool:
        """Whether none is left, or none of those that were tried could be measured."""
        return self.tried == len(self.candidates) or (not self.losses and self.tried >= MIN_LOWERED)

    def predicted(self, loss: Callable[[Sequence[float]], float]) -> float:
        """Return what is predicted of the next candidate; higher is better."""
        return self.candidates[self.tried].score - (loss(self.losses) if self.losses else 0.0)

    def measure_next(self) -> None:
        """Measure the next candidate in this precision, and learn from it."""
        assert self.precision.evaluate is not None
        candidate, expected = self.candidates[self.tried], self.predicted(_mean)
        try:
            quality = self.precision.evaluate(candidate.subnet)
        except CheckError as error:
            self.refused.append(str(error))
            return
        if not math.isfinite(quality.value):
            self.refused.append(f"its {quality.metric} is not a finite number")
            return
        change = quality.value - candidate.quality.value
        # Both were measured on the same examples, so that what is luck in one is luck in the other.
        lucky = None if candidate.expected is None else candidate.expected + change
        point = replace(candidate, quality=quality, expected=lucky, precision=self.precision.name)
        if self.losses:
            self.errors.append(point.score - expected)
        self.losses.append(candidate.score - point.score)
        self.measured.append(point)

    def result(self) -> PrecisionResult:
        """Return what this precision gives."""
        return PrecisionResult(
            best=min(self.measured, key=_rank, default=None),
            num_within=len(self.candidates),
            num_measured=len(self.measured),
            loss=_mean(self.losses) if self.losses else None,
            error=math.sqrt(_mean([error**2 for error in self.errors])) if self.errors else None,
            reason="" if self.measured else self.refused[0],
        )


def _run(lowered: Sequence[_Race], races: Sequence[_Race], most: int | None, on_progress: Progress | None) -> int:
    """Measure candidates of the precisions that need it; return how many had their turn."""
    total = sum(len(race.candidates) for race in lowered)
    total = total if most is None else min(total, max(most, len(lowered)))
    for count in range(total):
        best = max((point.score for race in races for point in race.measured), default=-math.inf)
        new = [race for race in lowered if not race.tried]
        running = [race for race in lowered if not race.is_over]
        if most is not None:
            running = [r for r in running if len(r.losses) < MIN_LOWERED or r.predicted(_lucky) > best]
        if not new and not running:
            return count
        (new or [max(running, key=lambda race: race.predicted(_mean))])[0].measure_next()
        if on_progress:
            on_progress(count + 1, total)
    return total


def _slowest(precisions: Sequence[Precision], subnet: Subnet) -> Cost:
    """Return the cost of a subnet with the latency, and the energy, of the precision where that is largest."""
    costs = [precision.cost_model.cost(subnet) for precision in precisions]
    latencies, energies = ([c.latency_ms for c in costs], [c.energy_mj for c in costs])
    return replace(costs[0], latency_ms=_largest(latencies), energy_mj=_largest(energies))


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _rank(point: Measured) -> tuple[float, float, int]:
    """Sort key: the best quality first, among equals the fastest, and then the fewest FLOPs."""
    quality, flops = rank(point)
    return quality, point.cost.latency_ms or 0.0, flops


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lucky(losses: Sequence[float]) -> float:
    return _mean(losses) - (2 * statistics.stdev(losses) if len(losses) > 1 else 0.0)
