from __future__ import annotations

import json

import numpy as np

from tests.cli.conftest import elastic


def refused(result, *messages):
    assert result.code == 2
    assert all(message in result.err for message in messages), result.err


def test_granularities_become_a_family_that_runs(universal_dir, tmp_path):
    bundle = tmp_path / "bundle"
    result = elastic("export", universal_dir, "--to", "family", "-o", bundle)
    assert result.code == 0, result.err
    assert "if they were not shared" in result.out
    members = json.loads((bundle / "manifest.json").read_text())["members"]
    assert [member["name"] for member in members] == ["XL", "S"]
    assert members[0]["cost"]["flops"] > members[1]["cost"]["flops"]
    assert members[0]["quality"]["split"] == "validation"
    report = elastic("verify", bundle, "--json").json
    assert report["subnets"].keys() == {"XL", "S"}
    assert elastic("bench", bundle, "--rounds", 2).out.count("ratio") == 2
    assert elastic("bench", bundle, "--rounds", 2, "--subnet", "S", "--json").json["subnet"] == "S"
    np.save(tmp_path / "in.npy", np.zeros((2, 1, 8, 8), np.float32))
    files = "--input", tmp_path / "in.npy", "-o"
    assert elastic("run", bundle, *files, tmp_path / "s.npz", "--subnet", "S", "--json").json["subnet"] == "S"
    assert elastic("run", bundle, *files, tmp_path / "d.npz", "--deadline", "1s").code == 0
    refused(elastic("run", bundle, *files, tmp_path / "e.npz", "--subnet", "Q"), "it has XL, S")
    refused(elastic("run", bundle, *files, tmp_path / "e.npz", "--deadline", "soon"), "'soon' is not a time")


def test_subnets_and_budgets_become_a_family(universal_dir, tmp_path):
    (tmp_path / "full.json").write_text('{"ffn": [64, 64], "heads": [4, 4]}')
    options = "--subnet", tmp_path / "full.json", "--flops", "60%", "--candidates", 2, "--unmeasured"
    result = elastic("export", universal_dir, "--to", "family", *options, "-o", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert [member["name"] for member in result.json["members"]] == ["full", "flops-60"]
    assert result.json["weight_bytes"] < result.json["unshared_bytes"]


def test_a_universal_model_becomes_a_family_of_engines(universal_dir, tmp_path):
    bundle = tmp_path / "bundle"
    options = "--unmeasured", "--precision", "fp16", "--profile", "batch=2"
    result = elastic("export", universal_dir, "--to", "tensorrt", *options, "-o", bundle)
    assert result.code == 0, result.err
    assert "Profile batch=2" in result.out
    assert "Next, on the device: cd bundle; python3 -m runtime build; python3 -m runtime bench" in result.err
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["kind"], [member["name"] for member in manifest["members"]]) == ("tensorrt", ["XL", "S"])
    assert manifest["members"][1]["parity"]["precision"] == "fp16"
    assert elastic("verify", bundle, "--json").json["subnets"].keys() == {"XL", "S"}
    refused(elastic("build", bundle, "--subnet", "S", "--subnet", "XL"), "TensorRT is not installed")
    extracted = tmp_path / "extracted"
    done = elastic("extract", universal_dir, "--subnet", json.dumps(manifest["members"][1]["subnet"]), "-o", extracted)
    assert done.code == 0, done.err
    for arguments, message in (
        ((universal_dir, "--embedding-dim", 8), "is for --to onnx or tensorrt, not for tensorrt of a universal model"),
        ((extracted, "--subnet", "s.json"), "is for --to family or tensorrt of a universal model, not for tensorrt"),
    ):
        refused(elastic("export", *arguments, "--to", "tensorrt", "-o", tmp_path / "out"), message)


def test_options_that_do_not_go_together_are_refused(universal_dir, tmp_path):
    out = "-o", tmp_path / "out"
    message = "--flops is for --to family or tensorrt of a universal model, not for onnx"
    refused(elastic("export", universal_dir, "--flops", "50%", *out), message)
    refused(
        elastic("export", universal_dir, "--to", "family", "--precision", "int8", *out),
        "a family is fp32 or fp16, not int8",
    )
    refused(elastic("export", universal_dir, "--to", "familly", *out), "did you mean 'family'")
    same = "--subnet", tmp_path / "a" / "s.json", "--subnet", tmp_path / "b" / "s.json"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.json").write_text('{"ffn": [64, 64], "heads": [4, 4]}')
    refused(elastic("export", universal_dir, "--to", "family", *same, *out), "two subnets have the same name")
    assert not (tmp_path / "out").exists()
