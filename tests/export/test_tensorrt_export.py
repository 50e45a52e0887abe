"""Exports for TensorRT: profiles, fixed sizes, what is refused, and the script that builds."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import onnx
import pytest

from elastic.errors import CheckError, CheckpointError
from elastic.export import TensorRTTarget, export_onnx, read_bundle, run_bundle, verify_bundle
from elastic.export.decoder import CachedLayer, DecoderInputs
from elastic.export.inputs import DenseInputs, TextInputs
from elastic.export.profiles import ProfiledInputs, default_profiles, fixed_sizes, parse_profile
from elastic.export.tensorrt.script import shape_options
from tests.cli.conftest import elastic
from tests.tiny import MODELS

TEXT = TextInputs(vocab_size=60, pad_id=0, max_length=40, has_cache=False)
DENSE = DenseInputs("pixel_values", (1, 8, 8))
DECODER = DecoderInputs(60, 0, 64, (CachedLayer(0, 2, 8, 8),))


def texts(profiles):
    return [str(profile) for profile in profiles]


def test_default_profiles_are_a_few_fixed_sizes():
    assert texts(default_profiles(TEXT)) == ["batch=1,sequence=32", "batch=1,sequence=40"]
    unlimited = TextInputs(vocab_size=60, pad_id=0, max_length=None, has_cache=False)
    assert [profile.max["sequence"] for profile in default_profiles(unlimited)] == [32, 64, 128, 256, 512]
    assert texts(default_profiles(DENSE)) == ["batch=1"]
    assert all(profile.fixed for profile in (*default_profiles(TEXT), *default_profiles(DENSE)))


def test_decoders_have_a_profile_for_prompts_and_one_for_tokens():
    prompt, token = default_profiles(DECODER)
    assert texts([prompt, token]) == ["batch=1,sequence=1:64:64,past=0", "batch=1,sequence=1,past=1:63:63"]
    assert (prompt.max["total"], token.min["total"], token.max["total"]) == (64, 2, 64)
    assert fixed_sizes([prompt, token]) == {"batch": 1}
    assert fixed_sizes([token]) == {"batch": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("text", "inputs", "written"),
    [
        ("sequence=16", TEXT, "batch=1,sequence=16"),
        ("batch=1:4:8,sequence=8:16:40", TEXT, "batch=1:4:8,sequence=8:16:40"),
        ("batch=2", DENSE, "batch=2"),
        ("sequence=1,past=0:4:8", DECODER, "batch=1,sequence=1,past=0:4:8"),
    ],
)
def test_profiles_are_read_as_they_are_written(text, inputs, written):
    profile = parse_profile(text, inputs)
    assert str(profile) == written
    assert parse_profile(written, inputs) == profile


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("batch=1", TEXT, "has no sequence; write batch=1,sequence=16:64:128"),
        ("batch=1,sequence=41", TEXT, "has sequence 41, and this model takes 40 at most"),
        ("batch=0,sequence=4", TEXT, "has the sizes '0' for batch"),
        ("batch=4:2:8,sequence=4", TEXT, "write one size, or min:opt:max such as 1:4:8"),
        ("batch=1:2,sequence=4", TEXT, "write one size, or min:opt:max"),
        ("batch=x,sequence=4", TEXT, "has the sizes 'x' for batch"),
        ("sequence=4", DENSE, "has 'sequence' where this model needs each of batch once"),
        ("batch=1,batch=2", DENSE, "has 'batch' where"),
        ("", DENSE, "has '' where"),
        ("sequence=60,past=10", DECODER, "has 70 tokens with the cached ones, and this model takes 64"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(text, inputs, message):
    with pytest.raises(CheckpointError, match=message):
        parse_profile(text, inputs)


def test_every_profile_is_compared():
    profiles = tuple(parse_profile(text, TEXT) for text in ("sequence=8", "batch=1:2:4,sequence=4:8:40"))
    wanted = ProfiledInputs(TEXT, profiles).parity_sizes()
    assert wanted == [
        {"batch": 1, "sequence": 8},
        {"batch": 2, "sequence": 8},
        {"batch": 1, "sequence": 4},
        {"batch": 4, "sequence": 40},
    ]
    assert ProfiledInputs(TEXT, profiles).max_sizes == {"batch": 4, "sequence": 40}


def test_options_of_trtexec():
    profile = parse_profile("batch=1:2:4,sequence=4:8:40", TEXT)
    assert shape_options(TEXT.specs, profile).split() == [
        f"--{which}Shapes=input_ids:{shape},attention_mask:{shape}"
        for which, shape in (("min", "1x4"), ("opt", "2x8"), ("max", "4x40"))
    ]
    fixed = ProfiledInputs(TEXT, (parse_profile("sequence=8", TEXT),))
    assert shape_options(fixed.specs, fixed.profiles[0]) == ""


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt") / "bert"
    export_onnx(MODELS["bert"](), folder, target=TensorRTTarget())
    return folder


def test_a_text_model_becomes_a_bundle_for_tensorrt(bundle_dir, tmp_path):
    manifest = read_bundle(bundle_dir)
    assert (manifest.kind, manifest.max_sizes, manifest.preprocess) == ("tensorrt", {"sequence": 40}, {"pad_id": 0})
    assert texts(manifest.profiles) == ["batch=1,sequence=32", "batch=1,sequence=40"]
    assert [spec.shape for spec in manifest.inputs] == [(1, "sequence")] * 2
    graph = onnx.load(bundle_dir / "model.onnx").graph
    assert [dim.dim_value or dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == [1, "sequence"]
    report = verify_bundle(bundle_dir)
    assert (report.samples, report.backend) == (2, "onnxruntime")
    np.savez(tmp_path / "ids.npz", input_ids=np.arange(12).reshape(3, 4))
    done = run_bundle(bundle_dir, tmp_path / "ids.npz", tmp_path / "out.npz")
    assert next(iter(done.outputs.values()))[0] == 3, "one row after another"


def test_the_script_calls_trtexec_once_for_each_profile(bundle_dir, tmp_path):
    tool = tmp_path / "trtexec"
    tool.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --help ]; then echo "  --stronglyTyped  --noTF32"; exit; fi\n'
        f'echo "$@" >> {tmp_path}/log\n'
        'for option; do case $option in --saveEngine=*) echo plan > "${option#--saveEngine=}" ;; esac; done\n'
    )
    tool.chmod(0o755)
    command = ["sh", str(bundle_dir / "build.sh"), "--memPoolSize=workspace:512"]
    done = subprocess.run(
        command, env={**os.environ, "TRTEXEC": str(tool)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].split() == [
        "--onnx=model.onnx",
        *(f"--{which}Shapes=input_ids:1x32,attention_mask:1x32" for which in ("min", "opt", "max")),
        "--stronglyTyped",
        "--noTF32",
        "--timingCacheFile=engines/trtexec.cache",
        "--saveEngine=engines/trtexec.model.profile0.plan.part",
        "--memPoolSize=workspace:512",
    ]
    plans = sorted(path.name for path in (bundle_dir / "engines").iterdir())
    assert plans == ["trtexec.model.profile0.plan", "trtexec.model.profile1.plan"]


def test_graphs_that_tensorrt_would_not_read_are_refused(tmp_path):
    with pytest.raises(
        CheckError,
        match=r"TensorRT 10.3 would not take this graph: operator DynamicQuantizeLinear \(node '.+'\) is not read",
    ):
        export_onnx(MODELS["bert"](), tmp_path / "out", precision="int8", target=TensorRTTarget())
    assert not list(tmp_path.iterdir())


def test_the_commands(tmp_path):
    MODELS["bert"]().save_pretrained(tmp_path / "model")
    options = "--profile", "sequence=16", "--triton", tmp_path / "repository", "-o", tmp_path / "bundle"
    done = elastic("export", tmp_path / "model", "--to", "tensorrt", *options)
    assert done.code == 0, done.err
    assert "Profile batch=1,sequence=16" in done.out
    assert read_bundle(tmp_path / "bundle").inputs[0].shape == (1, 16)
    assert (tmp_path / "repository" / "bundle" / "config.pbtxt").is_file()
    done = elastic("build", tmp_path / "bundle")
    assert (done.code, done.err.startswith("Error: TensorRT is not installed")) == (2, True)
    done = elastic("export", tmp_path / "model", "--profile", "sequence=16", "-o", tmp_path / "other")
    assert (done.code, "--profile is for --to tensorrt, not for onnx" in done.err) == (2, True)
