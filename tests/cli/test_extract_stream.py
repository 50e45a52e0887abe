"""`elastic extract --stream`, and what becomes of it when it is interrupted."""

from __future__ import annotations

import json

import pytest

import elastic as library
import elastic.streaming.extract as extract_module
from elastic.folder import sha256
from elastic.space import Subnet
from tests.cli.conftest import elastic

SUBNET = {"ffn": [32, 32], "heads": [2, 2]}


def test_streams_what_is_extracted_in_memory(universal_dir, tmp_path):
    options = ["--subnet", json.dumps(SUBNET)]

    def source():
        # Whatever measures on validation data remembers it in measured.json.
        return {path.name: sha256(path) for path in universal_dir.iterdir() if path.name != "measured.json"}

    before = source()
    text = elastic("extract", universal_dir, *options, "--stream", "-o", tmp_path / "text")
    assert text.code == 0 and "Every layer was verified" in text.err and "Quality was not measured" in text.err
    data = elastic("extract", universal_dir, *options, "--stream", "-o", tmp_path / "streamed", "--json").json
    measured = elastic("extract", universal_dir, *options, "-o", tmp_path / "measured", "--json").json
    assert data["stock"] and data["cost"] == measured["cost"] and data["subnet"] == SUBNET
    assert "quality" not in data and "quality" in measured
    for name in ("model.safetensors", "config.json"):
        assert sha256(tmp_path / "streamed" / name) == sha256(tmp_path / "measured" / name)
    assert library.load(tmp_path / "streamed").num_parameters() == data["cost"]["params"]
    assert "largest difference" in elastic("info", tmp_path / "streamed").out
    assert source() == before


def test_a_model_that_names_no_data_is_streamed(universal_dir, tmp_path):
    folder = tmp_path / "universal"
    folder.mkdir()
    for path in universal_dir.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "elastic.json").read_text())
    (folder / "elastic.json").write_text(json.dumps({**record, "recipe": None}))
    (tmp_path / "subnet.json").write_text(json.dumps(SUBNET))
    result = elastic("extract", folder, "--subnet", tmp_path / "subnet.json", "-o", tmp_path / "small")
    assert result.code == 0 and "Quality was not measured" in result.err
    assert library.load(tmp_path / "small").config.intermediate_size == 32


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--flops", "60%"], "name the subnet with --subnet"),
        (["--subnet", json.dumps(SUBNET), "--correct", "mean"], "leave --correct out"),
        (["--subnet", json.dumps(SUBNET), "--max-shard-size", "big"], "'big' is not a size of files"),
        (["--subnet", '{"ffn": [65, 1], "heads": [4, 4]}'], "ffn=65 of layer 0 is above the maximum"),
    ],
)
def test_refused(universal_dir, tmp_path, options, part):
    result = elastic("extract", universal_dir, "--stream", *options, "-o", tmp_path / "x")
    assert result.code == 2 and part in result.err and result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interrupted(universal_dir, tmp_path, monkeypatch):
    arguments = ["extract", universal_dir, "--stream", "--subnet", json.dumps(SUBNET), "--max-shard-size", "20KB"]
    whole, started = extract_module.write_file, []

    def write_file(path, *rest):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(path.name)
        return whole(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "write_file", write_file)
        result = elastic(*arguments, "-o", tmp_path / "small")
    assert result.code == 130 and "the same command continues" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["small.extracting"]
    assert elastic(*arguments, "-o", tmp_path / "small").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert library.load(tmp_path / "small").config.num_attention_heads == Subnet.from_dict(SUBNET).heads[0]
