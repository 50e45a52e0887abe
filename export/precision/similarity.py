"""How alike the outputs of two graphs are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elastic.export.runtime.compare import unmasked
from elastic.export.runtime.manifest import PRESENT, TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Similarity:
    """How alike the outputs of two graphs are: cosines of their rows."""

    mean: float
    min: float


def row_cosines(spec: TensorSpec, expected: Array, actual: Array, mask: Array | None) -> Array:
    """Return the cosine of every row (along the last axis) that the mask leaves in."""
    if mask is not None:
        expected, actual = unmasked(spec, expected, mask), unmasked(spec, actual, mask)
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
    return ((expected * actual).sum(-1) / np.maximum(norms, 1e-12)).ravel()


def similarity(cosines: Sequence[Array]) -> Similarity:
    """Return mean and lowest of all rows' cosines."""
    rows = np.concatenate(cosines)
    return Similarity(mean=float(rows.mean()), min=float(rows.min()))


def is_judged(spec: TensorSpec) -> bool:
    """Whether an output is what the model is for, and not a cache."""
    return not spec.name.startswith(f"{PRESENT}.")
