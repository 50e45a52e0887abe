"""Confidence intervals: as wide as theory says, and the same every time."""

from __future__ import annotations

import torch

from elastic.data import confidence_interval
from elastic.data.task import ACCURACY, SPEARMAN


def test_the_interval_of_a_mean_is_that_of_theory():
    items = 100.0 * (torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.8).float()
    low, high = confidence_interval(ACCURACY, items)
    mean, error = float(items.mean()), 100 * (0.8 * 0.2 / 2000) ** 0.5
    assert abs((high - low) / (2 * 1.96 * error) - 1) < 0.2
    assert low < mean < high
    assert confidence_interval(ACCURACY, items) == (low, high)


def test_any_metric_has_one():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(500, generator=generator)
    pairs = torch.stack([wanted + 0.3 * torch.rand(500, generator=generator), wanted], dim=1)
    low, high = confidence_interval(SPEARMAN, pairs)
    assert low < SPEARMAN.value(pairs) < high
    assert high - low < 5
