"""Which linear layers quantization hurts, and which of them to leave out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic.errors import CheckError
from elastic.export.graph import save_model
from elastic.selection import Quality

from .judge import Judge
from .linears import Linear
from .lowering import Lowering
from .options import Drop

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerReport:
    """What quantizing one linear layer is worth, and what it costs."""

    name: str
    macs_share: float
    """Of the multiply-adds of all linear layers."""
    params: int
    cosine_loss: float | None
    """One minus the mean cosine of the outputs, on calibration data, with this layer alone quantized."""
    quantized: bool


@dataclass(frozen=True)
class QuantizationReport:
    """How a graph was quantized, and what that cost."""

    precision: str
    target: str | None
    """Of int8-static alone; other precisions have one form."""
    calibration: str | None
    num_calibration: int
    macs_share: float | None
    """The share of linear layers' multiply-adds that is quantized."""
    layers: tuple[LayerReport, ...]
    fp32: Quality | None
    quantized: Quality | None
    """Both on data that calibrated nothing."""

    @property
    def drop(self) -> float | None:
        """How much quality was lost, in the units of the metric."""
        return None if self.fp32 is None or self.quantized is None else loss(self.fp32, self.quantized)

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest says."""
        data: dict[str, Any] = {"precision": self.precision}
        if self.target is not None:
            data["target"] = self.target
        if self.calibration is not None:
            data |= {"calibration": {"source": self.calibration, "num_examples": self.num_calibration}}
        if self.macs_share is not None:
            data["macs_share"] = self.macs_share
        if self.fp32 is not None and self.quantized is not None:
            data |= {"fp32": self.fp32.to_dict(), "quantized": self.quantized.to_dict(), "drop": self.drop}
        excluded = [layer.name for layer in self.layers if not layer.quantized]
        data["excluded"] = excluded
        if any(layer.cosine_loss is not None for layer in self.layers):
            data["layers"] = [
                {"name": x.name, "macs_share": x.macs_share, "params": x.params, "cosine_loss": x.cosine_loss,
                 "quantized": x.quantized} for x in self.layers
            ]  # fmt: skip
        return data


def loss(before: Quality, after: Quality) -> float:
    """Return how much worse a quality is."""
    return before.score - after.score


def judged(lowering: Lowering, chosen: Sequence[Linear], judge: Judge, *, finished: bool) -> Quality:
    """Return the quality of the graph with these linear layers quantized."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(lowering.make(chosen, finished=finished), path)
        return judge(path)


def measure_sensitivity(lowering: Lowering, judge: Judge, progress: Progress | None = None) -> dict[str, float]:
    """Return, for every linear layer, one minus the mean cosine of the outputs if it alone is quantized."""
    losses = {}
    for index, linear in enumerate(lowering.candidates):
        losses[linear.name] = 1.0 - judged(lowering, [linear], judge, finished=False).value
        if progress is not None:
            progress(index + 1, len(lowering.candidates))
    return losses


def choose_mix(
    lowering: Lowering, sensitivity: dict[str, float], judge: Judge, fp32: Quality, drop: Drop
) -> tuple[tuple[Linear, ...], Quality]:
    """Return the linear layers to quantize such that no more than the drop is lost, and the quality with them.

    Layers leave in the order of what they cost for each multiply-add; how many must leave is found by bisection, every
    step of it measured.

    Raises:
        CheckError: if even the last one costs more than that (says the smallest drop that was seen).
    """
    allowed = drop.allowed(fp32.value)
    total = sum(map(lowering.macs, lowering.linears))
    ranked = sorted(
        lowering.candidates, key=lambda linear: sensitivity[linear.name] * total / lowering.macs(linear), reverse=True
    )
    measured: dict[int, Quality] = {}

    def keeps(excluded: int) -> bool:
        measured[excluded] = judged(lowering, ranked[excluded:], judge, finished=True)
        return loss(fp32, measured[excluded]) <= allowed

    low, high = -1, len(ranked) - 1
    if keeps(0):
        high = 0
    elif not keeps(high):
        nearest = min(measured.values(), key=lambda quality: loss(fp32, quality))
        raise CheckError(
            f"no mix of {lowering.precision} and float32 loses at most {allowed:.4g} of {fp32.metric} {fp32.value:.4g} "
            f"({fp32.split}); the least that was seen is {loss(fp32, nearest):.4g}."
        )
    else:
        low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    kept = {linear.name for linear in ranked[high:]}
    return tuple(linear for linear in lowering.candidates if linear.name in kept), measured[high]
