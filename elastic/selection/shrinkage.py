"""What is expected of a measured subnet on other examples: the best of many measured ones is also the luckiest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from elastic.selection.measured import Quality
from elastic.selection.predictor import Predictor, additive_residual, refit
from elastic.space import Subnet

MIN_SUBNETS = 32
"""Fewer do not tell how much noise there is."""


@dataclass(frozen=True)
class Shrinkage:
    """``expected = predicted + weight * (measured - predicted)``: the empirical Bayes estimate of a mean in noise.

    As by Efron and Morris (Data Analysis Using Stein's Estimator and Its Generalizations, JASA 1975), with the
    predictor in the place of the grand mean. The weight is the share of the variance around the predictor that is not
    noise; without noise, what was measured is expected.
    """

    predictor: Predictor
    """Fitted to everything that was measured."""
    noise: float
    """Standard deviation that the choice of examples adds to differences between subnets, in units of the metric."""
    weight: float
    """Of what was measured, from 0 to 1."""

    def __call__(self, subnet: Subnet, quality: Quality) -> float:
        """Return the expected quality, in the metric's own direction."""
        predicted = self.predictor(subnet) if quality.higher_is_better else -self.predictor(subnet)
        return predicted + self.weight * (quality.value - predicted)


def fit_shrinkage(predictor: Predictor, measured: Mapping[Subnet, Quality]) -> Shrinkage | None:
    """Estimate noise and weight from all subnets that were measured; None where too few have both halves.

    A subnet's halves differ by twice the noise of the whole, since each has twice its variance. What the differences of
    all subnets have in common, and what adds up over choices, is left out: measurements do not differ from the
    predictor by it.

    Args:
        predictor: fitted to some of the subnets.
        measured: qualities on the same examples.
    """
    finite = {subnet: quality for subnet, quality in measured.items() if math.isfinite(quality.value)}
    apart = {subnet: (q.halves[0] - q.halves[1]) / 2 for subnet, q in finite.items() if q.halves is not None}
    if len(apart) < MIN_SUBNETS:
        return None
    fitted = refit(predictor, {subnet: quality.score for subnet, quality in finite.items()})
    noise = additive_residual(apart)
    weight = 1.0 - min(1.0, (noise / fitted.error) ** 2) if fitted.error > 0 else 1.0
    return Shrinkage(fitted, noise, weight)
