"""Measured once, remembered for the same weights and data alone."""

from __future__ import annotations

import json

from elastic.selection.cache import CACHE_NAME, MeasuredCache
from elastic.selection.measured import Quality
from elastic.space import Subnet

SUBNET = Subnet((4, 8), (2, 0))
QUALITY = Quality("accuracy", 91.5, True, "validation", 200)


def test_remembered_by_another_process(tmp_path):
    MeasuredCache(tmp_path, {"weights": "a"}).put(SUBNET, QUALITY)
    again = MeasuredCache(tmp_path, {"weights": "a"})
    assert again.get(SUBNET) == QUALITY
    assert again.get(Subnet((4, 4), (2, 2))) is None


def test_other_weights_or_data_know_nothing_and_lose_nothing(tmp_path):
    MeasuredCache(tmp_path, {"weights": "a"}).put(SUBNET, QUALITY)
    other = MeasuredCache(tmp_path, {"weights": "b"})
    assert other.get(SUBNET) is None
    other.put(SUBNET, Quality("accuracy", 1.0, True, "validation", 200))
    assert MeasuredCache(tmp_path, {"weights": "a"}).get(SUBNET) == QUALITY


def test_a_damaged_file_is_ignored(tmp_path):
    (tmp_path / CACHE_NAME).write_text('{"format_version": 1, "measured": [')
    cache = MeasuredCache(tmp_path, {})
    assert cache.get(SUBNET) is None
    cache.put(SUBNET, QUALITY)
    assert json.loads((tmp_path / CACHE_NAME).read_text())["format_version"] == 1


def test_nothing_else_is_left_behind(tmp_path):
    MeasuredCache(tmp_path, {}).put(SUBNET, QUALITY)
    assert [path.name for path in tmp_path.iterdir()] == [CACHE_NAME]


def test_a_folder_that_cannot_be_written_to_only_costs_time(tmp_path):
    cache = MeasuredCache(tmp_path / "gone", {})
    cache.put(SUBNET, QUALITY)
    assert cache.get(SUBNET) == QUALITY
