"""Where calibration data comes from, and what is wrong with some of it."""

from __future__ import annotations

import numpy as np
import pytest

from elastic.errors import CheckpointError, RecipeError
from elastic.export.precision.calibration import calibration_data, complete
from elastic.export.precision.options import Drop, PrecisionOptions
from elastic.export.runtime.manifest import TensorSpec
from tests.embedder import WORDS, write_embedder

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "total"))
KEY = TensorSpec("past_key_values.0.key", "float32", ("batch", 2, "past", 8))


def test_arrays_are_split_into_what_calibrates_and_what_judges(tmp_path):
    ids = np.arange(100).reshape(50, 2)
    np.savez(tmp_path / "inputs.npz", input_ids=ids)
    data = calibration_data(tmp_path / "inputs.npz", tmp_path, 40)
    rows = [row for feeds in (data.feeds, data.held_out) for feed in feeds for row in feed["input_ids"].tolist()]
    assert sorted(rows) == ids[:40].tolist()
    assert data.num_examples == 30
    assert data.source == "inputs.npz"


def test_texts_are_tokenised_by_the_model(tmp_path):
    folder = write_embedder(tmp_path / "embedder")
    texts = [f"{first} {second}" for first in WORDS for second in WORDS[:5]]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    data = calibration_data(tmp_path / "texts.txt", folder, 96)
    assert data.num_examples == 64 and len(data.held_out) == 1
    assert set(data.feeds[0]) >= {"input_ids", "attention_mask"}
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(RecipeError, match="no text that is not empty"):
        calibration_data(tmp_path / "empty.txt", folder, 96)


def test_what_cannot_calibrate(tmp_path):
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    np.savez(tmp_path / "one.npz", a=np.zeros((1, 3)))
    for name, message in (
        ("uneven", "arrays with one example a row"),
        ("one", "too few examples"),
        ("none", "there is no file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            calibration_data(tmp_path / f"{name}.npz", tmp_path, 64)


def test_feeds_are_completed_and_checked():
    feed = complete({"input_ids": np.ones((3, 5), np.int32), "token_type_ids": np.zeros((3, 5))}, (IDS, MASK, KEY))
    assert list(feed) == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert feed["input_ids"].dtype == np.int64
    assert feed["attention_mask"].tolist() == np.ones((3, 5)).tolist()
    assert feed["past_key_values.0.key"].shape == (3, 2, 0, 8)
    with pytest.raises(CheckpointError, match="has no 'input_ids'; the graph takes input_ids, attention_mask"):
        complete({"pixels": np.zeros((1, 2))}, (IDS, MASK))
    with pytest.raises(CheckpointError, match=r"'input_ids' as float64 of shape \(1, 2\), and the graph takes int64"):
        complete({"input_ids": np.zeros((1, 2))}, (IDS, MASK))


@pytest.mark.parametrize(
    ("precision", "settings", "message"),
    [
        ("int9", {}, "unknown precision 'int9'; did you mean 'int8'"),
        ("int8-static", {"target": "cpu"}, "unknown target 'cpu'"),
        ("int8-static", {}, r"int8-static needs calibration data: texts \(.txt"),
        ("int8", {"max_drop": Drop.read("1%")}, "max-drop needs calibration data"),
        ("int8", {"sensitivity": True}, "sensitivity needs calibration data"),
        ("fp32", {"fp16_norms": True}, "fp16-norms means nothing to the precision fp32; it is for fp16"),
        ("fp16", {"exclude": ("a",)}, "exclude means nothing to the precision fp16; it is for int8, int8-static, int4"),
        ("int4", {"block_size": 48}, "the block size must be one of 16, 32, 64, 128, 256, not 48"),
    ],
)
def test_options_that_do_not_fit_are_named(precision, settings, message):
    with pytest.raises(CheckpointError, match=message):
        PrecisionOptions(**settings).check(precision)


def test_drops_are_shares_or_metric_units():
    assert Drop.read("1%").allowed(80.0) == pytest.approx(0.8)
    assert Drop.read("0.5").allowed(80.0) == 0.5
    for text in ("1 percent", "-1%", "nan"):
        with pytest.raises(CheckpointError, match="is no drop of quality"):
            Drop.read(text)
