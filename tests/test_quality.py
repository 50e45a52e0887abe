"""Measured qualities: their halves tell how much noise the choice of examples adds; the JSON form keeps everything."""

from __future__ import annotations

import statistics

import torch

from elastic.data.task import ACCURACY, SPEARMAN
from elastic.pipeline.quality import NUM_BLOCKS, quality_of
from elastic.selection import Quality


def test_halves_differ_by_twice_the_error_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    qualities = [
        quality_of(ACCURACY, 100.0 * (torch.rand(400, generator=generator) < 0.7).float(), "validation")
        for _ in range(300)
    ]
    error = statistics.stdev(quality.value for quality in qualities)
    apart = statistics.stdev((q.halves[0] - q.halves[1]) / 2 for q in qualities)
    assert abs(apart / error - 1) < 0.15
    assert all(abs(sum(q.halves) / 2 - q.value) < 1e-6 for q in qualities)


def test_neighbours_are_in_one_half():
    items = torch.arange(8 * NUM_BLOCKS, dtype=torch.float32)
    one, other = quality_of(ACCURACY, items, "validation").halves
    assert other - one == 8


def test_halves_of_any_metric_and_none_of_too_few():
    pairs = torch.rand(NUM_BLOCKS * 4, 2, generator=torch.Generator().manual_seed(0))
    assert all(-100 <= half <= 100 for half in quality_of(SPEARMAN, pairs, "test").halves)
    assert quality_of(SPEARMAN, pairs[: NUM_BLOCKS - 1], "test").halves is None
    constant = torch.cat([torch.zeros(NUM_BLOCKS * 4, 1), pairs[:, 1:]], dim=1)
    assert quality_of(SPEARMAN, constant, "test").halves is None


def test_json_form():
    for quality in (
        Quality("accuracy", 50.0, True, "validation", 100),
        Quality("loss", 2.0, False, "test", 100, (1.9, 2.1), (2.05, 1.95)),
    ):
        assert Quality.from_dict(quality.to_dict()) == quality
