"""A family of engines: a graph for each subnet over one file of weights, an engine for each graph.

Against a stand-in for TensorRT that computes with ONNX Runtime, and against ONNX Runtime itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from elastic.errors import CheckpointError
from elastic.export import TensorRTTarget, export_family, lint_for_tensorrt, read_bundle, write_triton
from elastic.export.runtime import engine
from elastic.export.runtime.__main__ import main
from elastic.export.runtime.build import build
from elastic.export.runtime.errors import BundleError, VerificationError
from elastic.export.runtime.members import Session
from elastic.export.runtime.verify import verify
from tests.conftest import make_tiny_elastic
from tests.export.test_engines import install  # noqa: F401 (a fixture)
from tests.export.test_family import HALF, named
from tests.tiny import MODELS

NAMES = ("XL", "M")


@pytest.fixture(scope="session")
def exported_engines(tmp_path_factory):
    """Return a function that exports a family for TensorRT once."""
    folder, done = tmp_path_factory.mktemp("engine-families"), {}

    def get(kind: str, precision: str = "fp32", *profiles: str):
        if (kind, precision) not in done:
            model = make_tiny_elastic(MODELS[kind]())
            members, target = named(model, M=HALF), TensorRTTarget(profiles)
            done[kind, precision] = export_family(
                model, members, folder / f"{kind}-{precision}", precision=precision, target=target
            )
        return done[kind, precision]

    return get


@pytest.fixture
def bundle_dir(exported_engines, tmp_path):
    report = exported_engines("bert", "fp32", "sequence=8", "sequence=16")
    return Path(shutil.copytree(report.bundle_dir, tmp_path / "bert"))


def inputs_of(sequence=8, seed=0):
    ids = np.random.default_rng(seed).integers(1, 60, (1, sequence))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def for_bundle(folder, sequence=8, seed=0):
    names = {spec.name for spec in read_bundle(folder).inputs}
    return {name: array for name, array in inputs_of(sequence, seed).items() if name in names}


def test_the_bundle_has_members_and_profiles(bundle_dir):
    manifest = read_bundle(bundle_dir)
    assert (manifest.kind, manifest.weights) == ("tensorrt", "weights.bin")
    assert tuple(member.name for member in manifest.members) == NAMES
    assert [str(profile) for profile in manifest.profiles] == ["batch=1,sequence=8", "batch=1,sequence=16"]
    assert manifest.preprocess == {"pad_id": 0}
    for member in manifest.members:
        assert [spec.shape for spec in member.inputs] == [(1, "sequence")] * len(member.inputs)
        assert {tuple(sorted(sizes.items())) for sizes in member.parity.shapes} == {
            (("batch", 1), ("sequence", 8)),
            (("batch", 1), ("sequence", 16)),
        }
    lines = (bundle_dir / "build.sh").read_text()
    assert lines.count("--onnx=XL.onnx") == lines.count("--onnx=M.onnx") == 2


def test_its_weights_lie_as_the_parser_reads_them(bundle_dir):
    """Its file is beside the graph, a region is as long as its tensor, and the keys are those that it knows."""
    size = (bundle_dir / "weights.bin").stat().st_size
    regions = {}
    for name in NAMES:
        model = onnx.load(bundle_dir / f"{name}.onnx", load_external_data=False)
        assert lint_for_tensorrt(bundle_dir / f"{name}.onnx", "10.3") == ()
        for tensor in model.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                assert place.keys() == {"location", "offset", "length"}
                assert place["location"] == "weights.bin"
                length = np.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
                assert int(place["length"]) == length <= size - int(place["offset"])
                regions.setdefault(name, set()).add((int(place["offset"]), int(length)))
    assert {offset for offset, _ in regions["M"]} <= {offset for offset, _ in regions["XL"]}, "one copy of the weights"


def test_an_engine_is_built_for_every_member(install, bundle_dir):  # noqa: F811
    trt, _ = install()
    assert verify(bundle_dir).backend == "onnxruntime"
    report = build(bundle_dir)
    assert [record.file.split(".")[0] for record in report.engines] == list(NAMES)
    assert len({record.file.split(".")[1] for record in report.engines}) == 2, "a key of its own for each"
    assert [entry[3] for entry in trt.log if entry[0] == "build"] == [b"", b"timings"], "one timing cache"
    assert len(list((bundle_dir / "engines").glob("*.cache"))) == 1
    checked = verify(bundle_dir)
    assert (checked.backend, checked.subnets.keys(), checked.not_built) == ("tensorrt", set(NAMES), ())
    assert build(bundle_dir).reused == 2
    session = Session.open(bundle_dir)
    reference = Session.open(bundle_dir, backend="onnxruntime")
    for number, name in enumerate(NAMES * 2):
        inputs = for_bundle(bundle_dir, 5 + number, number)
        for output, array in reference.run(inputs, subnet=name).items():
            np.testing.assert_allclose(session.run(inputs, subnet=name)[output], array, atol=1e-5)
    engines = [session.bundle(name).session for name in NAMES]
    assert engines[0]._scratch is engines[1]._scratch, "engines that take turns share their scratch memory"


def test_a_session_switches_by_deadline(install, bundle_dir):  # noqa: F811
    install()
    build(bundle_dir)
    session, inputs, now = Session.open(bundle_dir), for_bundle(bundle_dir), [0.0]
    took = {"XL": 0.030, "M": 0.012}

    def timed(name):
        graph = session.bundle(name).session
        run = graph.run

        def slow(*arguments):
            now[0] += took[name]
            return run(*arguments)

        graph.run = slow

    session.clock = lambda: now[0]
    for name in NAMES:
        timed(name)
    assert session.warm_up(inputs) == pytest.approx({"XL": 30.0, "M": 12.0})
    assert (session.choose(inputs, 31), session.choose(inputs, 20)) == ("XL", "M")
    took.update(XL=0.017, M=0.007)
    ran = []
    for _ in range(60):
        ran.append(session.choose(inputs, 20))
        session.run(inputs, deadline_ms=20)
    assert ran[0] == "M"
    assert ran[-1] == "XL", "the device became faster, and the large engine was tried again"
    assert ran == sorted(ran), "once, and for good"


def test_some_engines_of_a_family(install, bundle_dir, capsys):  # noqa: F811
    install()
    assert main(["build", str(bundle_dir), "--subnet", "M"]) == 0
    assert capsys.readouterr().out.count(".plan: ") == 1
    assert main(["verify", str(bundle_dir)]) == 0
    assert "XL: no engine is built" in capsys.readouterr().out
    session, inputs = Session.open(bundle_dir), for_bundle(bundle_dir)
    assert session.names == ("M",)
    assert session.choose(inputs, 1e9) == "M"
    np.testing.assert_array_equal(*(session.run(inputs, subnet=name)["logits"] for name in (None, "M")))
    with pytest.raises(BundleError, match="has no engine of XL.onnx for Orin"):
        session.run(inputs, subnet="XL")
    with pytest.raises(BundleError, match="there is no subnet 'Q' in this bundle; it has XL, M"):
        build(bundle_dir, subnets=["Q"])
    assert build(bundle_dir, subnets=["M", "XL"]).reused == 1
    assert Session.open(bundle_dir).names == NAMES


def test_stripped_engines_are_refitted_from_the_shared_weights(install, bundle_dir):  # noqa: F811
    trt, _ = install()
    build(bundle_dir, stripped=True)
    plans = sorted((bundle_dir / "engines").glob("*.plan"))
    assert [json.loads(plan.read_bytes())["onnx"] for plan in plans] == [None, None]
    trt.log.clear()
    assert verify(bundle_dir).backend == "tensorrt"
    assert [entry[1] for entry in trt.log if entry[0] == "refit"] == ["XL.onnx", "M.onnx"]


def test_other_weights_need_other_engines(install, bundle_dir):  # noqa: F811
    install()
    build(bundle_dir)
    weights = bundle_dir / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(VerificationError, match="'weights.bin' .* is not the file that was exported"):
        Session.open(bundle_dir)
    with pytest.raises(VerificationError, match=r"'weights.bin'"):
        build(bundle_dir, force=True)


def test_a_wrong_engine_of_one_member_leaves_the_others(install, bundle_dir):  # noqa: F811
    install()
    build(bundle_dir, subnets=["M"])
    install(wrong=True)
    with pytest.raises(VerificationError, match="the engine of 'XL.onnx' in .* does not reproduce"):
        build(bundle_dir)
    assert [record.file.split(".")[0] for record in engine._records(bundle_dir)] == ["M"]


def test_a_decoders_members_share_the_profiles(install, exported_engines, tmp_path):  # noqa: F811
    report = exported_engines("llama")
    folder = Path(shutil.copytree(report.bundle_dir, tmp_path / "llama"))
    manifest = read_bundle(folder)
    assert [str(one) for one in manifest.profiles] == [
        "batch=1,sequence=1:64:64,past=0", "batch=1,sequence=1,past=1:63:63",
    ]  # fmt: skip
    assert len(manifest.members[0].inputs) == len(manifest.members[1].inputs) > 2
    install()
    build(folder, subnets=["M"])
    assert verify(folder).subnets.keys() == {"M"}


def test_every_member_is_a_model_for_triton(install, bundle_dir, tmp_path):  # noqa: F811
    assert write_triton(bundle_dir, tmp_path / "repository") == ("bert_xl", "bert_m")
    install()
    build(bundle_dir)
    command = ["sh", str(tmp_path / "repository" / "install_engines.sh"), str(bundle_dir)]
    subprocess.run(command, check=True)
    for name, member in (("bert_xl", "XL"), ("bert_m", "M")):
        plan = (tmp_path / "repository" / name / "1" / "model.plan").read_bytes()
        assert json.loads(plan)["graph"].endswith(f"{member}.onnx")


def test_half_precision_shares_weights_too(exported_engines, install, tmp_path):  # noqa: F811
    whole, half = exported_engines("bert", "fp32", "sequence=8", "sequence=16"), exported_engines("bert", "fp16")
    assert half.manifest.parity.precision == "fp16"
    assert half.weight_bytes < 0.6 * whole.weight_bytes
    assert half.weight_bytes < 0.8 * half.unshared_bytes
    folder = Path(shutil.copytree(half.bundle_dir, tmp_path / "half"))
    assert verify(folder).subnets.keys() == set(NAMES)
    install()
    build(folder)
    assert verify(folder).backend == "tensorrt"


def test_other_precisions_are_refused(tmp_path):
    model = make_tiny_elastic(MODELS["bert"]())
    with pytest.raises(CheckpointError, match="a family is fp32 or fp16, not int8"):
        export_family(model, named(model, M=HALF), tmp_path / "out", precision="int8")
    assert not list(tmp_path.iterdir())
