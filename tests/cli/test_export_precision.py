"""`elastic export --precision`: from the command line to a bundle that verifies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from elastic.cli.app import app
from elastic.export import verify_bundle
from tests.embedder import WORDS, write_embedder, write_pairs
from tests.tiny import tiny_llama

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    write_embedder(folder / "embedder")
    write_pairs(folder / "pairs", folder / "embedder")
    (folder / "texts.txt").write_text("\n".join(f"{a} {b} near" for a in WORDS for b in WORDS[:5]))
    recipe = {
        "name": "pairs",
        "task": "sentence-similarity",
        "model": {"pretrained": str(folder / "embedder")},
        "data": {"source": "sentence-pairs", "path": str(folder / "pairs"), "labelled": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_static_int8_says_what_each_layer_costs(embedder, tmp_path):
    output = run("export", embedder / "embedder", "--precision", "int8-static", "--calibration", embedder / "texts.txt",
                 "--sensitivity", "-o", tmp_path / "out")  # fmt: skip
    assert "encoder.layer.2.output.dense" in output
    assert "100% of multiply-adds quantized" in output
    quality = json.loads((tmp_path / "out" / "manifest.json").read_text())["quality"]["quantization"]
    assert quality["target"] == "cpu-x86"
    assert quality["calibration"]["source"] == "texts.txt"
    assert quality["quantized"]["split"] == "held-out calibration data"
    assert len(quality["layers"]) == 18
    assert sum(layer["macs_share"] for layer in quality["layers"]) == pytest.approx(1.0)
    assert 0 < quality["drop"] < 0.1
    assert verify_bundle(tmp_path / "out").precision == "int8-static"


def test_a_recipe_judges_by_its_metric(embedder, tmp_path):
    output = run("export", embedder / "embedder", "--precision", "int8", "--recipe", embedder / "recipe.yaml",
                 "--max-drop", "5%", "-o", tmp_path / "out", "--json")  # fmt: skip
    quality = json.loads(output[output.index("{") :])["quality"]["quantization"]
    assert quality["fp32"]["metric"] == "spearman"
    assert quality["fp32"]["split"] == "validation"
    assert quality["fp32"]["value"] == pytest.approx(100.0, abs=0.01)
    assert quality["drop"] <= 5.0


def test_a_decoder_in_int4_and_half(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llama")
    np.savez(tmp_path / "inputs.npz", input_ids=np.random.default_rng(0).integers(1, 60, (64, 9)))
    output = run("export", tmp_path / "llama", "--precision", "int4", "--calibration", tmp_path / "inputs.npz",
                 "-o", tmp_path / "int4")  # fmt: skip
    assert "cosine (held-out calibration data" in output
    run("export", tmp_path / "llama", "--precision", "fp16", "--fp16-io", "-o", tmp_path / "fp16")
    manifest = json.loads((tmp_path / "fp16" / "manifest.json").read_text())
    assert {spec["dtype"] for spec in manifest["inputs"]} == {"int64", "float16"}
    assert verify_bundle(tmp_path / "fp16").max_abs_diff < manifest["parity"]["tolerance"]
    run("run", tmp_path / "fp16", "--input", tmp_path / "inputs.npz", "--max-new-tokens", 3,
        "-o", tmp_path / "ids.npz")  # fmt: skip
    assert np.load(tmp_path / "ids.npz")["generated_ids"].shape == (64, 3)


def test_bad_input_is_one_sentence(embedder, tmp_path):
    output = run("export", embedder / "embedder", "--precision", "int8-static", "-o", tmp_path / "out", code=2)
    assert "int8-static needs calibration data" in output
    output = run("export", embedder / "embedder", "--set", "a=1", "-o", tmp_path / "out", code=2)
    assert "--set and --variant change a recipe" in output
    assert not (tmp_path / "out").exists()
