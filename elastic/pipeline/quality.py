"""From what a metric keeps of every item to a quality that can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from elastic.data import Metric, Task, confidence_interval, fingerprint
from elastic.selection import MeasuredCache, Quality

NUM_BLOCKS = 16
"""Examples are halved by blocks, so that neighbours, such as the tokens of a text, are in one half."""


def quality_of(metric: Metric, items: torch.Tensor, split: str) -> Quality:
    """Return the quality of measured items, with its confidence interval and halves where these are finite numbers."""
    value = metric.value(items)
    interval = confidence_interval(metric, items) if math.isfinite(value) else None
    return Quality(metric.name, value, metric.higher_is_better, split, len(items), interval, _halves(metric, items))


def _halves(metric: Metric, items: torch.Tensor) -> tuple[float, float] | None:
    blocks = items.chunk(NUM_BLOCKS)
    if len(blocks) < NUM_BLOCKS:
        return None
    one, other = metric.value(torch.cat(blocks[0::2])), metric.value(torch.cat(blocks[1::2]))
    return (one, other) if math.isfinite(one) and math.isfinite(other) else None


def measured_cache(
    folder: Path, files: Mapping[str, str], task: Task, conditions: Mapping[str, Any] | None = None
) -> MeasuredCache:
    """Return what has been measured, on validation data, of a universal model with these weight files.

    Args:
        folder: the universal model.
        files: its weight files and their hashes.
        task: the data and the metric.
        conditions: what qualities depend on besides: a precision, for example.
    """
    key = {"weights": dict(files), "data": fingerprint(task, "validation"), "metric": task.metric.name}
    return MeasuredCache(folder, {**key, **(conditions or {})})
