"""Calibration batches for the tiny models."""

from __future__ import annotations

import pytest

from elastic.extraction import sample_inputs


@pytest.fixture
def batches():
    def make(model, count=4):
        return [sample_inputs(model.config, batch=4, seed=seed) for seed in range(count)]

    return make
