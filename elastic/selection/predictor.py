"""Predicts the quality of any subnet from a few that were measured: what each choice of each layer costs adds up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from elastic.selection.measured import Quality
from elastic.space import WIDTHS, ResolvedSpace, Subnet

Evaluate = Callable[[Subnet], Quality]
Choice = tuple[int, str, int]
"""``(layer, axis, choice)``; the choice 0 skips the sub-layer; the layer is `WHOLE_MODEL` for the model's widths."""
WHOLE_MODEL = -1
NUM_SAMPLES = 32
MAX_SINGLES = 256
NUM_FOLDS = 4
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Predictor:
    """``quality(subnet) = base + Σ effect(layer, axis, choice)``, higher is better, with its error on held-out subnets.

    The effects of single choices were measured; a ridge regression over sampled subnets moves them to where
    choices come together.
    """

    base: float
    effects: dict[Choice, float]
    error: float
    """Root mean square error on sampled subnets that a fit had not seen (cross-validated), in units of the metric."""
    rank_correlation: float
    """Spearman's, on the same."""
    num_measured: int
    """How many subnets were measured for it."""
    singles: Mapping[Choice, float] = field(default_factory=dict)
    """What single changes of the largest subnet were measured to do."""

    def __call__(self, subnet: Subnet) -> float:
        """Return the predicted quality; for losses, its negative."""
        return self.base + sum(self.effects.get(choice, 0.0) for choice in choices_of(subnet))


def choices_of(subnet: Subnet) -> list[Choice]:
    """Return every choice that a subnet is made of."""
    per_layer = [
        (layer, axis, value)
        for axis, values in (("ffn", subnet.ffn), ("heads", subnet.heads))
        for layer, value in enumerate(values)
    ]
    return per_layer + [(WHOLE_MODEL, axis, width) for axis in WIDTHS if (width := getattr(subnet, axis)) is not None]


def single_changes(space: ResolvedSpace) -> dict[Choice, Subnet]:
    """Return the largest subnet with one choice of one layer changed, for each that subnets of the space make."""
    largest = space.largest
    found: dict[Choice, Subnet] = {}
    for attention, mlp in space.skeletons():
        for layer in range(space.dims.num_layers):
            for axis, kept, choices in (("heads", attention, space.heads), ("ffn", mlp, space.ffn)):
                for choice in choices if layer in kept else (0,):
                    values = list(getattr(largest, axis))
                    values[layer] = choice
                    changed = replace(largest, **{axis: tuple(values)})  # type: ignore[arg-type]
                    if changed != largest and changed.kept_layers:
                        found[layer, axis, choice] = changed
    for hidden, embedding_dim in space.widths():
        if hidden is not None and embedding_dim is None:
            found[WHOLE_MODEL, "hidden", hidden] = replace(largest, hidden=hidden)
        if hidden is None and embedding_dim is not None:
            found[WHOLE_MODEL, "embedding_dim", embedding_dim] = replace(largest, embedding_dim=embedding_dim)
    return found


def fit_predictor(
    space: ResolvedSpace,
    evaluate: Evaluate,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Predictor | None:
    """Measure single changes and sampled subnets, and fit a predictor; None where qualities are no numbers.

    Args:
        space: of which subnets.
        evaluate: measures a subnet on held-out data.
        seed: of the sampled subnets.
        on_progress: called with how many subnets are measured, and how many there are.
    """
    rng = random.Random(seed)
    singles = single_changes(space)
    if len(singles) > MAX_SINGLES:
        singles = {choice: singles[choice] for choice in rng.sample(sorted(singles), MAX_SINGLES)}
    samples = list(dict.fromkeys(space.sample(rng) for _ in range(NUM_SAMPLES)))
    measured: dict[Subnet, float] = {}
    wanted = list(dict.fromkeys([space.largest, *singles.values(), *samples]))
    for index, subnet in enumerate(wanted):
        measured[subnet] = evaluate(subnet).score
        if on_progress:
            on_progress(index + 1, len(wanted))
    base = measured[space.largest]
    finite = {subnet: value for subnet, value in measured.items() if math.isfinite(value)}
    if not math.isfinite(base) or not any(sample in finite for sample in samples):
        return None
    prior = {choice: finite[subnet] - base for choice, subnet in singles.items() if subnet in finite}
    return _fit(base, prior, [(s, finite[s]) for s in samples if s in finite], len(wanted))


def refit(predictor: Predictor, measured: Mapping[Subnet, float]) -> Predictor:
    """Fit a predictor again, to everything that was measured since; of losses, to their negatives."""
    return _fit(predictor.base, predictor.singles, list(measured.items()), len(measured))


def additive_residual(differences: Mapping[Subnet, float]) -> float:
    """Return the root mean square of what no sum of choices explains, cross-validated."""
    made, _ = _choices_made(list(differences))
    targets = np.array(list(differences.values()))
    features = np.column_stack([made, np.zeros(len(made))])
    return min(_errors(features, targets - targets.mean(), ridge)[0] for ridge in RIDGES)


def _choices_made(subnets: Sequence[Subnet], others: Iterable[Choice] = ()) -> tuple[np.ndarray, list[Choice]]:
    """Return ``(subnets, choices)`` with a one for each choice that a subnet makes, and the choices."""
    choices = sorted({choice for subnet in subnets for choice in choices_of(subnet)} | set(others))
    place = {choice: index for index, choice in enumerate(choices)}
    made = np.zeros((len(subnets), len(choices)))
    for row, subnet in enumerate(subnets):
        made[row, [place[choice] for choice in choices_of(subnet)]] = 1.0
    return made, choices


def _fit(base: float, prior: Mapping[Choice, float], samples: Sequence[tuple[Subnet, float]], count: int) -> Predictor:
    made, choices = _choices_made([subnet for subnet, _ in samples], prior)
    expected = np.array([prior.get(choice, 0.0) for choice in choices])
    # Single changes tell the relative size of effects; together they may weigh more or less than one by one.
    features = np.column_stack([made, made @ expected])
    targets = np.array([value for _, value in samples]) - base
    best = min(RIDGES, key=lambda ridge: _errors(features, targets, ridge)[0])
    error, correlation = _errors(features, targets, best)
    weights = _ridge(features, targets, best)
    effects = weights[:-1] + weights[-1] * expected
    return Predictor(base, dict(zip(choices, effects.tolist(), strict=True)), error, correlation, count, prior)


def _ridge(features: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Least squares, pulled towards the effects of single changes added up."""
    start = np.zeros(features.shape[1])
    start[-1] = 1.0
    gram = features.T @ features + ridge * np.eye(features.shape[1])
    return start + np.linalg.solve(gram, features.T @ (targets - features @ start))


def _errors(features: np.ndarray, targets: np.ndarray, ridge: float) -> tuple[float, float]:
    from scipy.stats import spearmanr  # takes a second to import, and most commands do not search

    predicted = np.empty_like(targets)
    folds = np.arange(len(targets)) % NUM_FOLDS
    for fold in range(NUM_FOLDS):
        rest = folds != fold
        if rest.any() and not rest.all():
            predicted[~rest] = features[~rest] @ _ridge(features[rest], targets[rest], ridge)
        else:
            predicted[~rest] = features[~rest, -1]
    correlation = spearmanr(predicted, targets).statistic if len(targets) > 2 and np.ptp(targets) > 0 else 1.0
    return float(np.sqrt(np.mean((predicted - targets) ** 2))), float(np.nan_to_num(correlation, nan=0.0))
