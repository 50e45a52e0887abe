"""From what a metric keeps of every item to a quality that can be compared."""

from __future__ import annotations

import math

import torch

from elastic.data import Metric, confidence_interval
from elastic.selection import Quality


def quality_of(metric: Metric, items: torch.Tensor, split: str) -> Quality:
    """Return the quality of measured items, with its confidence interval where it is a finite number."""
    value = metric.value(items)
    interval = confidence_interval(metric, items) if math.isfinite(value) else None
    return Quality(metric.name, value, metric.higher_is_better, split, len(items), interval)
