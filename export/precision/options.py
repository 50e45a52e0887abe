"""What an export may ask of a precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elastic.errors import CheckpointError, did_you_mean

from .calibration import CalibrationData

FP32, FP16, INT8, INT8_STATIC, INT4 = "fp32", "fp16", "int8", "int8-static", "int4"
PRECISIONS = (FP32, FP16, INT8, INT8_STATIC, INT4)
X86, ARM, TENSORRT = "cpu-x86", "cpu-arm", "tensorrt"
TARGETS = (X86, ARM, TENSORRT)
BLOCK_SIZES = (16, 32, 64, 128, 256)

_APPLIES_TO: Mapping[str, tuple[str, ...]] = {
    "fp16_norms": (FP16,),
    "fp16_io": (FP16,),
    "rest": (INT8_STATIC,),
    "exclude": (INT8, INT8_STATIC, INT4),
    "sensitivity": (INT8, INT8_STATIC, INT4),
    "max_drop": (INT8, INT8_STATIC, INT4),
    "block_size": (INT4,),
}
"""The precisions that each option means something to."""


@dataclass(frozen=True)
class Drop:
    """How much quality may be lost."""

    amount: float
    relative: bool
    """Whether the amount is a share of the quality in float32, or in the units of the metric."""

    @classmethod
    def read(cls, text: str) -> Drop:
        """Read ``1%``, or ``0.5`` in the metric's own units.

        Raises:
            CheckpointError: if it is neither.
        """
        number, relative = text.strip().removesuffix("%"), text.strip().endswith("%")
        try:
            amount = float(number) / (100 if relative else 1)
        except ValueError:
            amount = -1.0
        if not 0.0 <= amount < float("inf"):
            raise CheckpointError(f"'{text}' is no drop of quality; write a share such as 1%, or metric units: 0.5.")
        return cls(amount, relative)

    def allowed(self, quality: float) -> float:
        """Return how much may be lost of a quality in float32."""
        return self.amount * (abs(quality) if self.relative else 1.0)


@dataclass(frozen=True)
class PrecisionOptions:
    """How a graph is converted to a precision."""

    target: str = X86
    """Whose integer kernels a statically quantized graph is for: ``cpu-x86``, ``cpu-arm`` or ``tensorrt``."""
    calibration: CalibrationData | None = None
    """Inputs on which ranges, sensitivity and quality are measured."""
    exclude: tuple[str, ...] = ()
    """Patterns of linear layers that keep their precision."""
    sensitivity: bool = False
    """Measure what every linear layer's quantization costs alone."""
    max_drop: Drop | None = None
    """Exclude as many linear layers as it takes to lose no more than this."""
    block_size: int = 32
    """Weights that share a scale in int4."""
    fp16_norms: bool = False
    """Convert norms and Softmax to float16 too."""
    fp16_io: bool = False
    """Take and return float16."""
    rest: str = FP32
    """The precision of what int8-static does not quantize: ``fp32``, or ``fp16`` for strongly typed engines."""

    def check(self, precision: str) -> None:
        """Check that the options fit a precision.

        Raises:
            CheckpointError: naming the first that does not.
        """
        for name, value, known in (
            ("precision", precision, PRECISIONS),
            ("target", self.target, TARGETS),
            ("rest", self.rest, (FP32, FP16)),
        ):
            if value not in known:
                raise CheckpointError(f"unknown {name} '{value}'{did_you_mean(value, known)}")
        if self.block_size not in BLOCK_SIZES:
            raise CheckpointError(
                f"the block size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {self.block_size}."
            )
        default: Any = PrecisionOptions()
        for name, precisions in _APPLIES_TO.items():
            if precision not in precisions and getattr(self, name) != getattr(default, name):
                raise CheckpointError(
                    f"{name.replace('_', '-')} means nothing to the precision {precision}; it is for "
                    f"{', '.join(precisions)}."
                )
        needed = precision == INT8_STATIC or self.sensitivity or self.max_drop is not None
        if needed and self.calibration is None:
            what = precision if precision == INT8_STATIC else "sensitivity" if self.sensitivity else "max-drop"
            raise CheckpointError(
                f"{what} needs calibration data: texts (.txt, .parquet), inputs (.npz), or a recipe with its data."
            )
