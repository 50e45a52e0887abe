from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest

from elastic.errors import CheckpointError, OutputExistsError
from elastic.export.runtime.manifest import Profile, read_manifest
from elastic.export.triton import model_config, to_text, write_triton
from tests.export.small_bundles import fixed, write_bundle


def edit(folder, **changes):
    path = folder / "manifest.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in data.items() if name != "seal"}))


def read_text(text: str):
    """Parse protobuf's text format, as far as it is used here: into lists of (name, value)."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,]+', text)

    def fields(end):
        found = []
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            assert re.fullmatch(r"[a-z_]+", name), name
            if tokens[0] == "{":
                tokens.pop(0)
                found.append((name, fields("}")))
                assert tokens.pop(0) == "}"
            else:
                assert tokens.pop(0) == ":"
                found.append((name, value()))
        return found

    def value():
        token = tokens.pop(0)
        if token != "[":
            return json.loads(token) if token[0] in '"-0123456789tf' else token
        found = []
        while tokens[0] != "]":
            found.append(value())
            if tokens[0] == ",":
                tokens.pop(0)
        tokens.pop(0)
        return found

    parsed = fields(None)
    assert not tokens
    return parsed


def test_a_bundle_for_onnxruntime_has_its_graph_in_the_version_folder(tmp_path):
    bundle = write_bundle(tmp_path / "my bundle")
    edit(bundle, kind="onnx", profiles=[], max_sizes={"sequence": 16})
    assert write_triton(bundle, tmp_path / "repository", max_batch=8) == ("my_bundle",)
    model = tmp_path / "repository" / "my_bundle"
    assert (model / "1" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    config = read_text((model / "config.pbtxt").read_text())
    values = dict(config)
    assert (values["name"], values["backend"], values["max_batch_size"]) == ("my_bundle", "onnxruntime", 8)
    tensors = [dict(value) for name, value in config if name in ("input", "output")]
    assert tensors == [
        {"name": "input_ids", "data_type": "TYPE_INT64", "dims": [-1]},
        {"name": "attention_mask", "data_type": "TYPE_INT64", "dims": [-1]},
        {"name": "last_hidden_state", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "sentence_embedding", "data_type": "TYPE_FP32", "dims": [4]},
    ]
    assert dict(values["dynamic_batching"])["preferred_batch_size"] == [4, 8]
    assert dict(values["instance_group"]) == {"count": 1, "kind": "KIND_CPU"}
    mask = np.frombuffer((model / "warmup" / "attention_mask_16").read_bytes(), "<i8")
    assert mask.tolist() == [1] * 16
    assert not (tmp_path / "repository" / "install_engines.sh").exists()


def test_a_bundle_for_tensorrt_names_its_profiles(tmp_path):
    manifest = read_manifest(write_bundle(tmp_path / "bundle"))
    config = model_config("small", manifest)
    assert (config["backend"], config["max_batch_size"]) == ("tensorrt", 4)
    assert config["instance_group"][0]["profile"] == ["0", "1", "2"]
    specs = config["optimization"]["cuda"]["graph_spec"]
    assert [spec["batch_size"] for spec in specs] == [1, 1, 4]
    assert specs[1]["input"][0] == {"key": "input_ids", "value": {"dim": [16]}}
    assert [warm_up["batch_size"] for warm_up in config["model_warmup"]] == [1, 1, 4]
    assert read_text(to_text(config))[0] == ("name", "small")


def test_sizes_that_vary_are_no_cuda_graphs_and_a_fixed_batch_is_part_of_the_shape(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    low, high = ({"batch": 1, "sequence": size} for size in (4, 16))
    data = json.loads((bundle / "manifest.json").read_text())
    for side in ("inputs", "outputs"):
        for spec in data[side]:
            spec["shape"][0] = 1
    edit(bundle, profiles=[vars(Profile(low, high, high))], **{side: data[side] for side in ("inputs", "outputs")})
    config = model_config("small", read_manifest(bundle))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [1, -1]
    assert "optimization" not in config
    assert "dynamic_batching" not in config
    edit(bundle, profiles=[vars(fixed(batch=1, sequence=16))])
    spec = model_config("small", read_manifest(bundle))["optimization"]["cuda"]["graph_spec"][0]
    assert (spec["batch_size"], spec["input"][0]["value"]["dim"]) == (0, [1, 16])


def test_engines_are_installed_from_the_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    write_triton(bundle, tmp_path / "repository")

    def install():
        command = ["sh", "../repository/install_engines.sh", "."]
        return subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)

    assert install().returncode == 1
    assert "has no engine, or several" in install().stderr
    (bundle / "engines").mkdir()
    plan = bundle / "engines" / "model.0123456789abcdef.plan"
    plan.write_bytes(b"plan")
    record = bundle / "engines" / "model.0123456789abcdef.plan.json"
    record.write_text('{"settings": {"stripped": true}}')
    assert "build it without --strip" in install().stderr
    record.write_text('{"settings": {"stripped": false}}')
    done = install()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "bundle" / "1" / "model.plan").read_bytes() == b"plan"


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a decoder with a key-value cache"):
        write_triton(write_bundle(tmp_path / "decoder", "decoder"), tmp_path / "repository")
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="is not a bundle"):
        write_triton(tmp_path, tmp_path / "repository")
    (bundle / "model.onnx").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"'model.onnx' .* copy the bundle again"):
        write_triton(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    (tmp_path / "repository").mkdir()
    with pytest.raises(OutputExistsError):
        write_triton(write_bundle(tmp_path / "whole"), tmp_path / "repository")


def test_text_is_quoted_as_protobuf_does():
    assert to_text({"name": 'a "b"', "flags": [True, False], "none": []}) == (
        'name: "a \\"b\\""\nflags: [ true, false ]\nnone: []\n'
    )
