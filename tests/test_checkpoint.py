"""Extracted checkpoints whose layers differ come back as they were; broken ones are refused in one sentence."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings

from elastic.checkpoint import load, save_checkpoint
from elastic.errors import CheckpointError, OutputExistsError
from elastic.extraction import extract, largest_difference, sample_inputs
from elastic.folder import new_folder
from elastic.nested import active, get_elastic
from elastic.record import CheckpointRecord, read_record
from elastic.space import Subnet
from tests.conftest import fitting, subnets

DIFFERENT = Subnet(ffn=(13, 0, 64), heads=(2, 4, 0))


def save_extracted(universal, subnet, folder):
    record = CheckpointRecord(
        kind="extracted",
        family=universal.config.model_type,
        elastic_version="0",
        input_shapes={},
        subnet=subnet.to_dict(),
        universal_dims=get_elastic(universal).dims,
    )
    with new_folder(folder) as target:
        save_checkpoint(extract(universal, subnet), record, target)


def test_a_quality_that_is_no_number_comes_back(tmp_path):
    """Of embeddings that are all alike, there is no rank correlation; JSON has no NaN."""
    quality = {"metric": "spearman", "value": math.nan, "split": "test", "num_examples": 3}
    record = CheckpointRecord(
        kind="extracted", family="bert", elastic_version="0", input_shapes={}, quality=quality,
        healing={"before": quality},
    )  # fmt: skip
    (tmp_path / "elastic.json").write_text(record.model_dump_json())
    json.loads((tmp_path / "elastic.json").read_text(), parse_constant=pytest.fail)
    found = read_record(tmp_path)
    assert math.isnan(found.quality["value"]) and math.isnan(found.healing["before"]["value"])


@settings(max_examples=5)
@given(subnet=subnets())
def test_extracted_checkpoints_round_trip(universal, subnet, tmp_path_factory):
    subnet = fitting(universal, subnet)
    folder = tmp_path_factory.mktemp("extracted") / "small"
    save_extracted(universal, subnet, folder)
    inputs = sample_inputs(universal.config, batch=2)
    loaded = load(folder)
    with active(universal, subnet), torch.no_grad():
        assert largest_difference(universal(**inputs)[0], loaded(**inputs)[0]) <= 1e-5
    # And once more, as a user would who trains the extracted model further.
    again = folder.with_name("again")
    record = CheckpointRecord.model_validate_json((folder / "elastic.json").read_text())
    with new_folder(again) as target:
        save_checkpoint(loaded, record, target)
    with torch.no_grad():
        assert largest_difference(load(again)(**inputs)[0], loaded(**inputs)[0]) == 0


@pytest.mark.parametrize("universal", ["modernbert"], indirect=True)
def test_a_modernbert_without_its_first_layer(universal, tmp_path):
    """Its first layer alone has no norm, so that no stock configuration describes the rest; all sizes are full."""
    subnet = Subnet(ffn=(0, 64, 64), heads=(0, 4, 4))
    save_extracted(universal, subnet, tmp_path / "small")
    inputs = sample_inputs(universal.config, batch=2)
    with active(universal, subnet), torch.no_grad():
        assert largest_difference(universal(**inputs)[0], load(tmp_path / "small")(**inputs)[0]) <= 1e-5
    with pytest.raises(Exception, match=r"per-layer attribute"):
        type(universal).from_pretrained(tmp_path / "small")


@pytest.mark.parametrize("universal", ["vit"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subnet": None}, "does not say which subnet this is"),
        ({"universal_dims": {"layers": 3}}, "is not a record of Elastic: universal_dims"),
        ({"subnet": {"ffn": [13, 0, 63], "heads": [2, 4, 0]}}, "has other layers than the subnet in elastic.json"),
        ({"subnet": {"ffn": [13, 0], "heads": [2, 4]}}, "has other layers than the subnet in elastic.json"),
    ],
)
def test_records_that_contradict_the_weights(universal, tmp_path, changes, message):
    save_extracted(universal, DIFFERENT, tmp_path / "small")
    path = tmp_path / "small" / "elastic.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "small")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole.txt").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole.txt"]
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out"):
        pass


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out") as folder:
        (folder / "ours.txt").write_text("ours")
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
