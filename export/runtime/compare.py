"""Compares the outputs of a graph with expected ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .manifest import TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """How far one output of one run was from what was expected."""

    output: str
    sizes: dict[str, int]
    """The sizes of the free dimensions in this run."""
    max_abs_diff: float
    """Infinite if a value is not a number, or the shape is another."""
    argmax_gap: float
    """How much lower the expected logits rate the class that was returned instead of theirs; 0 if it is the same."""

    def failure(self, tolerance: float, argmax_tie: float | None) -> str | None:
        """Say what is wrong, or return None if the difference is within the tolerance."""
        where = " ".join(f"{name} {size}" for name, size in self.sizes.items())
        if not self.max_abs_diff <= tolerance:
            return f"'{self.output}' differs by {self.max_abs_diff:.3g} at {where}, and {tolerance:g} is allowed"
        if argmax_tie is not None and self.argmax_gap > argmax_tie:
            return (
                f"'{self.output}' has another largest class at {where}, which is expected to be lower by "
                f"{self.argmax_gap:.3g}, and {argmax_tie:g} is allowed"
            )
        return None


def compare(spec: TensorSpec, expected: Array, actual: Array, mask: Array | None, sizes: dict[str, int]) -> Difference:
    """Compare one output; positions that the attention mask leaves out mean nothing and are not compared."""
    if expected.shape != actual.shape:
        return Difference(spec.name, sizes, math.inf, math.inf)
    if mask is not None:
        expected, actual = unmasked(spec, expected, mask), unmasked(spec, actual, mask)
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    largest = float(np.max(np.abs(expected - actual), initial=0.0))
    if math.isnan(largest):
        return Difference(spec.name, sizes, math.inf, math.inf)
    return Difference(spec.name, sizes, largest, _argmax_gap(expected, actual) if spec.name == "logits" else 0.0)


def unmasked(spec: TensorSpec, array: Array, mask: Array) -> Array:
    """Return the positions that the mask leaves in: the new ones of a sequence, or all that are cached."""
    if spec.has_sequence:
        return array[mask[:, -array.shape[1] :].astype(bool)]
    if "total" in spec.shape:
        return np.moveaxis(array, spec.shape.index("total"), 1)[mask.astype(bool)]
    return array


def _argmax_gap(expected: Array, actual: Array) -> float:
    chosen = np.take_along_axis(expected, actual.argmax(axis=-1, keepdims=True), axis=-1)
    return float(np.max(expected.max(axis=-1, keepdims=True) - chosen, initial=0.0))
