"""Predicts the latency and energy of any subnet from those that a device has measured."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elastic.cost.cost import Cost, InputShapes
from elastic.cost.latency_table import LatencyTable, subnets_of
from elastic.errors import BudgetError
from elastic.space import ResolvedSpace
from elastic.subnet import Subnet

Vector = np.ndarray
Knots = tuple[int, ...]
"""Widths between which a curve is linear, ascending; from 0 on it is one straight line."""

_DETERMINED = 1e-6


@dataclass(frozen=True)
class Additive:
    """A cost that is the sum of a base and of what each kept attention and each FFN needs, by its width.

    ``cost = base + sum over layers of attention(heads) + ffn(width)``, where a skipped sub-layer needs nothing and
    layers share their coefficients. Each curve is a constant for being there and a piecewise linear, never falling
    function of the width. The coefficients are the non-negative least-squares fit of relative errors (Lawson and
    Hanson, 1974, as in SciPy).
    """

    heads_knots: Knots
    ffn_knots: Knots
    coefficients: tuple[float, ...]
    projection: tuple[tuple[float, ...], ...]
    """Onto the directions in which the measured subnets differ."""
    error: float | None = None
    """Mean relative error on measured subnets that were left out of the fit; None where none can be left out."""
    num_left_out: int = 0

    @classmethod
    def fit(cls, measured: Mapping[Subnet, float]) -> Additive:
        """Fit curves that are straight, or that bend at the measured widths, as left-out subnets decide."""
        heads, ffn = ({w for s in measured for w in getattr(s, axis) if w} or {1} for axis in ("heads", "ffn"))
        fits = [_leave_one_out(measured, *knots) for knots in itertools.product(curves(heads), curves(ffn))]
        # The first is the simplest, and min() keeps it between equals.
        return min(fits, key=lambda fit: fit[0])[1]

    def predict(self, subnet: Subnet) -> float | None:
        """Return the cost of a subnet, or None where the measured subnets do not tell it."""
        x = features(subnet, self.heads_knots, self.ffn_knots)
        if x is None or np.linalg.norm(np.array(self.projection) @ x - x) > _DETERMINED * np.linalg.norm(x):
            return None
        return float(x @ np.array(self.coefficients))


@dataclass(frozen=True)
class LatencyModel:
    """What one device needs for one inference of any subnet, at the input sizes that costs are computed for."""

    table: LatencyTable
    latency: Mapping[int | None, Additive]
    """In milliseconds, by hidden size."""
    energy: Mapping[int | None, Additive]
    """In millijoules, by hidden size; empty where the device could not read its power."""
    num_measured: int
    """How many subnets the table has at these sizes."""

    @classmethod
    def fit(cls, table: LatencyTable, input_shapes: InputShapes, past: int = 0) -> LatencyModel:
        """Fit a model to what a table holds at these sizes.

        Raises:
            BudgetError: if the table was measured at other sizes.
        """
        rows = subnets_of(table.at(input_shapes, past))
        if len({subnet.num_layers for subnet in rows}) > 1:
            raise BudgetError(f"the latency table {table.path} holds subnets of different models; profile one model.")
        latency, energy = {}, {}
        for hidden in dict.fromkeys(subnet.hidden for subnet in rows):
            of_hidden = {subnet: row for subnet, row in rows.items() if subnet.hidden == hidden}
            latency[hidden] = Additive.fit({subnet: row.median_ms for subnet, row in of_hidden.items()})
            joules = {subnet: row.energy_mj for subnet, row in of_hidden.items() if row.energy_mj is not None}
            if len(joules) == len(of_hidden):
                energy[hidden] = Additive.fit(joules)
        return cls(table, latency, energy, len(rows))

    def add_to(self, cost: Cost, subnet: Subnet) -> Cost:
        """Return the cost of a subnet with its predicted latency, and energy where it was measured.

        Raises:
            BudgetError: if the measured subnets do not tell what this one needs; says which to measure.
        """
        latency = _predict(self.latency, subnet)
        if latency is None:
            raise self._untold(subnet)
        return replace(cost, latency_ms=latency, energy_mj=_predict(self.energy, subnet), device=self.table.title)

    def check_covers(self, space: ResolvedSpace) -> None:
        """Check that every subnet of a space can be predicted.

        Raises:
            BudgetError: if one cannot; names a subnet to measure.
        """
        # All subnets are sums of these, so if these are told, all are.
        wanted: list[tuple[str, int]] = [
            (axis, choice)
            for axis in ("ffn", "heads", "layers", "attention", "mlp", "exit")
            for choice in reversed(getattr(space, axis))
        ]
        for hidden in reversed(space.hidden):
            for axis, choice in wanted:
                subnet = space.uniform(**{"hidden": hidden, axis: choice})
                if _predict(self.latency, subnet) is None:
                    raise self._untold(subnet)

    @property
    def errors(self) -> dict[str, float | None]:
        """Mean relative errors on measured subnets that were left out; of several hidden sizes, the worst."""
        found = {}
        for name, models in (("latency", self.latency), ("energy", self.energy)):
            errors = [model.error for model in models.values()]
            if errors:
                known = [error for error in errors if error is not None]
                found[name] = max(known) if len(known) == len(errors) else None
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of where the predictions come from."""
        return {
            "path": self.table.path,
            "device": self.table.device.name,
            "threads": self.table.threads,
            "precision": self.table.precision,
            "measured": self.num_measured,
            "error": self.errors,
        }

    def describe(self) -> str:
        """Return a sentence about where the predictions come from, and how far off they are."""
        parts = [f"{name} {'unknown' if e is None else f'{e:.1%}'}" for name, e in self.errors.items()]
        return (
            f"Predicted for {self.table.title} from {self.num_measured} measured subnets; mean error on those left out "
            f"of the fit: {', '.join(parts)}."
        )

    def _untold(self, subnet: Subnet) -> BudgetError:
        return BudgetError(
            f"the {self.num_measured} subnets in the latency table {self.table.path} do not tell what "
            f"{subnet.describe()} needs; profile a bundle of that subnet too, or one from `elastic export --to family "
            "--for-profiling`, which tells all."
        )


def _predict(models: Mapping[int | None, Additive], subnet: Subnet) -> float | None:
    model = models.get(subnet.hidden)
    return None if model is None else model.predict(subnet)


def curves(widths: set[int]) -> list[Knots]:
    """Return the knots of a straight line, and of one that bends at every width; of two widths both are the same."""
    return [(0, max(widths)), *([tuple(sorted(widths))] if len(widths) > 2 else [])]


def features(subnet: Subnet, heads_knots: Knots, ffn_knots: Knots) -> Vector | None:
    """Return what the coefficients multiply, or None for a subnet that is wider than all that were measured."""
    if max(subnet.heads) > heads_knots[-1] or max(subnet.ffn) > ffn_knots[-1]:
        return None
    return np.array([1.0, *_curve(subnet.heads, heads_knots), *_curve(subnet.ffn, ffn_knots)])


@functools.lru_cache(maxsize=65536)
def _curve(widths: tuple[int, ...], knots: Knots) -> tuple[float, ...]:
    """Sum over layers: whether the sub-layer is there, and how far its width is along each stretch between knots."""
    there = np.array([width for width in widths if width], dtype=float)
    low, high = np.array(knots[:-1], dtype=float), np.array(knots[1:], dtype=float)
    along = np.clip((there[:, None] - low) / (high - low), 0.0, 1.0).sum(axis=0)
    return float(len(there)), *(float(value) for value in along)


def _fit(measured: Mapping[Subnet, float], heads_knots: Knots, ffn_knots: Knots) -> Additive:
    rows = [features(subnet, heads_knots, ffn_knots) for subnet in measured]
    x = np.array([row for row in rows if row is not None])
    y = np.array([value for row, value in zip(rows, measured.values(), strict=True) if row is not None])
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    from scipy.optimize import nnls  # takes a third of a second, which commands without a table do not need

    coefficients = nnls(x / scale / y[:, None], np.ones(len(y)))[0] / scale
    projection = np.linalg.pinv(x / scale) @ (x / scale)
    # In the features' own units: what is spanned by the rows stays as it is.
    projection = scale[:, None] * projection.T / scale
    return Additive(
        heads_knots,
        ffn_knots,
        tuple(float(c) for c in coefficients),
        tuple(tuple(float(v) for v in row) for row in projection),
    )


def _leave_one_out(measured: Mapping[Subnet, float], heads_knots: Knots, ffn_knots: Knots) -> tuple[float, Additive]:
    """Return the mean relative error over all subnets when each is left out once, and the fit to all of them.

    The fit states the error over those subnets that the others tell.
    """
    every, told = [], []
    for subnet, value in measured.items():
        others = {other: cost for other, cost in measured.items() if other != subnet}
        if not others:
            continue
        fit = _fit(others, heads_knots, ffn_knots)
        x = features(subnet, heads_knots, ffn_knots)
        assert x is not None  # The knots reach to the widest subnet.
        error = abs(float(x @ np.array(fit.coefficients)) - value) / value
        every.append(error)
        if fit.predict(subnet) is not None:
            told.append(error)
    fit = _fit(measured, heads_knots, ffn_knots)
    reported = replace(fit, error=float(np.mean(told)) if told else None, num_left_out=len(told))
    return float(np.mean(every)) if every else 0.0, reported
