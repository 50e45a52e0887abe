"""Building and running engines, against a stand-in for TensorRT that computes with ONNX Runtime."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from elastic.export.runtime import backend, device
from elastic.export.runtime.__main__ import main
from elastic.export.runtime.build import build, read_size
from elastic.export.runtime.cuda import Cuda
from elastic.export.runtime.engine_session import EngineSession, Scratch, choose_profile
from elastic.export.runtime.errors import BundleError, VerificationError
from elastic.export.runtime.generate import generate
from elastic.export.runtime.session import Bundle
from elastic.export.runtime.verify import verify
from tests.export.fake_tensorrt import FakeCudart, make_module
from tests.export.small_bundles import DECODER_PROFILES, TEXT_INPUTS, TEXT_PROFILES, draw, write_bundle


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a fake TensorRT, and a CUDA runtime, on this machine."""

    def put(cudart: FakeCudart | None = None, version: str = "10.3.0.30", name: str = "Orin", **behaviour):
        cudart = cudart or FakeCudart()
        trt = make_module(cudart, version, **behaviour)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(device, "open_cuda", lambda: Cuda(cudart))
        monkeypatch.setattr(device, "device_name", lambda number: name)
        return trt, cudart

    return put


@pytest.fixture
def bundle_dir(tmp_path):
    return write_bundle(tmp_path / "bundle")


def engine_files(folder):
    return sorted(path.name for path in (folder / "engines").iterdir()) if (folder / "engines").exists() else []


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("kind", ["text", "decoder"])
def test_an_engine_is_built_verified_recorded_and_used(install, tmp_path, integrated, kind):
    folder = write_bundle(tmp_path / kind, kind)
    trt, cudart = install(FakeCudart(integrated=integrated))
    assert verify(folder).backend == "onnxruntime"
    report = build(folder)
    (record,) = report.engines
    assert (record.samples, record.tolerance, report.reused) == (len(json_of(folder)["profiles"]), 1e-4, 0)
    assert trt.log[0] == ("network", 1 << 1), "strong typing"
    assert trt.log[1] == ("build", [], {}, b""), "float32 without TF32, and no other flag"
    names = engine_files(folder)
    assert names == sorted([record.file, f"{record.file}.json", names[-1]])
    assert not cudart.blocks, "everything that was allocated to verify is free again"
    assert verify(folder).backend == "tensorrt"
    assert verify(folder, backend="onnxruntime").backend == "onnxruntime"
    copies = cudart.calls.count("cudaMemcpyAsync")
    assert (copies == 0) == integrated, "a GPU that shares the memory needs no copies"
    assert ("cudaMallocManaged" in cudart.calls) == integrated


def json_of(folder):
    data = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in data.items() if name != "seal"}


def test_an_engine_that_is_there_is_kept_until_something_changes(install, bundle_dir):
    trt, _ = install()
    first = build(bundle_dir).engines[0]
    assert build(bundle_dir).reused == 1
    assert sum(entry[0] == "build" for entry in trt.log) == 1
    assert build(bundle_dir, force=True).reused == 0
    assert trt.log[-1][0] == "execute"
    assert [entry[3] for entry in trt.log if entry[0] == "build"] == [b"", b"timings"], "the timing cache is used again"
    assert build(bundle_dir, workspace=1 << 20).reused == 0
    assert [entry[2] for entry in trt.log if entry[0] == "build"][-1] == {"WORKSPACE": 1 << 20}
    install(version="10.13.3.9")
    other = build(bundle_dir).engines[0]
    install(name="Thor")
    third = build(bundle_dir).engines[0]
    install(FakeCudart(capability=(11, 0)))
    assert len({first.file, other.file, third.file, build(bundle_dir).engines[0].file}) == 4
    caches = [name for name in engine_files(bundle_dir) if name.endswith(".cache")]
    assert len(caches) == 4


def test_a_timing_cache_of_another_device_is_not_used(install, bundle_dir):
    trt, _ = install()
    build(bundle_dir)
    (cache,) = (bundle_dir / "engines").glob("*.cache")
    cache.write_bytes(b"damaged")
    build(bundle_dir, force=True)
    assert [entry[3] for entry in trt.log if entry[0] == "build"] == [b"", b""]
    assert cache.read_bytes() == b"timings"


def test_an_engine_for_another_tensorrt_is_not_run(install, bundle_dir):
    install()
    build(bundle_dir)
    install(version="11.4.1.0")
    with pytest.raises(
        BundleError, match=r"no engine of model.onnx for .*TensorRT 11.4.1.0 \(there are engines for Orin"
    ):
        Bundle.open(bundle_dir)
    assert Bundle.open(bundle_dir, backend="onnxruntime").backend == "onnxruntime"


def test_engines_that_came_along_do_not_matter_where_tensorrt_is_missing(install, bundle_dir, monkeypatch):
    install()
    build(bundle_dir)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert Bundle.open(bundle_dir).backend == "onnxruntime"
    with pytest.raises(BundleError, match="TensorRT is not installed for this Python"):
        Bundle.open(bundle_dir, backend="tensorrt")


def test_a_stripped_engine_takes_its_weights_from_the_bundle(install, bundle_dir):
    trt, _ = install()
    build(bundle_dir, stripped=True)
    assert next(entry for entry in trt.log if entry[0] == "build")[1] == ["REFIT_IDENTICAL", "STRIP_PLAN"]
    plan = json.loads(next((bundle_dir / "engines").glob("*.plan")).read_bytes())
    assert plan["onnx"] is None
    before = trt.log.count(("refit", "model.onnx"))
    assert verify(bundle_dir).backend == "tensorrt"
    assert trt.log.count(("refit", "model.onnx")) == before + 1
    install(unrefittable=True)
    with pytest.raises(
        BundleError, match="does not take the weights of .*model.onnx', 'a.weight' among others is missing"
    ):
        Bundle.open(bundle_dir)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            {"unread": "Gather"},
            r"TensorRT 10.3.0.30 cannot read the operator Gather \(node 'embed'\) of .*: No importer",
        ),
        ({"no_gpu": True}, r"finds no usable GPU here: CUDA initialization failure with error: 35\."),
        (
            {"build_error": "Error Code 2: OutOfMemory (Requested size was 8 GB)"},
            "too little memory to build .*--workspace",
        ),
        (
            {"build_error": "10: Could not find any implementation for node {mean}."},
            "no kernel for {mean} of .*--precision",
        ),
        ({"build_error": "something\nelse"}, r"cannot build .*: something\."),
    ],
)
def test_what_tensorrt_cannot_do_is_one_sentence(install, bundle_dir, capsys, behaviour, message):
    install(**behaviour)
    with pytest.raises(BundleError, match=message):
        build(bundle_dir)
    assert not [name for name in engine_files(bundle_dir) if "plan" in name]
    assert main(["build", str(bundle_dir)]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert sum(line.startswith("error") for line in error.splitlines()) == 1


@pytest.mark.parametrize(("version", "message"), [("10.2.0", "is too old; 10.3"), ("8.6.1", "is too old; 10.3")])
def test_an_old_tensorrt_is_refused(install, bundle_dir, version, message):
    install(version=version)
    with pytest.raises(BundleError, match=message):
        build(bundle_dir)


def test_an_engine_that_computes_something_else_is_not_kept(install, bundle_dir):
    install(wrong=True)
    with pytest.raises(VerificationError, match="was not kept: the engine of .* does not reproduce its parity samples"):
        build(bundle_dir)
    assert [name for name in engine_files(bundle_dir) if "plan" in name] == []
    assert main(["build", str(bundle_dir)]) == 1


def test_a_damaged_engine_is_not_loaded(install, bundle_dir):
    install()
    build(bundle_dir)
    plan = next((bundle_dir / "engines").glob("*.plan"))
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(VerificationError, match="is not the one that was built and verified; build it again"):
        Bundle.open(bundle_dir)
    build(bundle_dir, force=True)
    assert Bundle.open(bundle_dir).backend == "tensorrt"


def test_too_little_memory_of_the_device_is_one_sentence(install, bundle_dir):
    install(FakeCudart(memory=4096))
    with pytest.raises(BundleError, match=r"the device has no 0 MiB of memory left \(out of memory\)"):
        build(bundle_dir)


def test_bundles_without_profiles_are_not_built(bundle_dir, install):
    install()
    data = json_of(bundle_dir)
    (bundle_dir / "manifest.json").write_text(json.dumps(data | {"profiles": [], "kind": "onnx"}))
    with pytest.raises(BundleError, match="has no profiles to build engines for; export it with"):
        build(bundle_dir)
    with pytest.raises(BundleError, match="is not for TensorRT"):
        Bundle.open(bundle_dir, backend="tensorrt")
    with pytest.raises(BundleError, match="there is no backend 'cuda'; there are onnxruntime and tensorrt"):
        backend.choose_backend(bundle_dir, Bundle.open(bundle_dir).manifest, "cuda")


@pytest.mark.parametrize("sizes", [(1, 5), (1, 8), (1, 9), (1, 16), (2, 3), (4, 8)])
def test_smaller_inputs_are_padded_and_the_outputs_cut_back(install, bundle_dir, sizes):
    trt, _ = install()
    build(bundle_dir)
    inputs = draw(TEXT_INPUTS, {"batch": sizes[0], "sequence": sizes[1]}, seed=3)
    expected = Bundle.open(bundle_dir, backend="onnxruntime").run(inputs)
    actual = Bundle.open(bundle_dir).run(inputs)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-6)
    ran = {"batch": 1 if sizes[0] == 1 else 4, "sequence": 8 if sizes[1] <= 8 else 16}
    assert trt.log[-1][2]["input_ids"] == tuple(ran.values())


def test_padding_is_the_models_own(install, tmp_path):
    folder = write_bundle(tmp_path / "padded", preprocess={"pad_id": 7})
    install()
    build(folder)
    session = Bundle.open(folder).session
    bundle = Bundle.open(folder)
    bundle.run(draw(TEXT_INPUTS, {"batch": 1, "sequence": 5}))
    buffer = bundle.session._buffers["input_ids"].array("int64", (1, 8))
    assert buffer[0, 5:].tolist() == [7, 7, 7]
    session.close()


def test_inputs_that_no_profile_takes_are_refused(install, bundle_dir):
    install()
    build(bundle_dir)
    bundle = Bundle.open(bundle_dir)
    with pytest.raises(
        BundleError, match=r"no profile .* takes batch 4, sequence 9; it has batch=1,sequence=8; batch=1"
    ):
        bundle.run(draw(TEXT_INPUTS, {"batch": 4, "sequence": 9}))


def test_the_tightest_profile_is_chosen():
    assert choose_profile(TEXT_PROFILES, {"batch": 1, "sequence": 3}) == (0, {"batch": 1, "sequence": 8})
    assert choose_profile(TEXT_PROFILES, {"batch": 2, "sequence": 8}) == (2, {"batch": 4, "sequence": 8})
    prompt = {"batch": 1, "sequence": 1, "past": 0, "total": 1}
    assert choose_profile(DECODER_PROFILES, prompt)[0] == 0
    assert choose_profile(DECODER_PROFILES, prompt | {"past": 3, "total": 4})[0] == 1
    with pytest.raises(BundleError, match="takes batch 1, sequence 2, past 3"):
        choose_profile(DECODER_PROFILES, {"batch": 1, "sequence": 2, "past": 3, "total": 5})


def test_fixed_sizes_are_launched_as_cuda_graphs_with_new_inputs(install, bundle_dir):
    _, cudart = install()
    build(bundle_dir)
    bundle, reference = Bundle.open(bundle_dir), Bundle.open(bundle_dir, backend="onnxruntime")
    cudart.calls.clear()
    for seed in range(4):
        inputs = draw(TEXT_INPUTS, {"batch": 1, "sequence": 8}, seed=seed)
        expected = reference.run(inputs)["sentence_embedding"]
        np.testing.assert_allclose(bundle.run(inputs)["sentence_embedding"], expected, atol=1e-6)
    assert cudart.calls.count("cudaStreamBeginCapture") == 1, "the second run is recorded"
    assert cudart.calls.count("cudaGraphLaunch") == 3


def test_ranges_are_not_captured(install, tmp_path):
    folder = write_bundle(tmp_path / "decoder", "decoder")
    _, cudart = install()
    build(folder)
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_where_nothing_can_be_captured_runs_stay_as_they_were(install, bundle_dir):
    cudart = FakeCudart()
    cudart.fail_capture = True
    install(cudart)
    build(bundle_dir)
    assert verify(bundle_dir).max_abs_diff < 1e-6
    assert "cudaGraphLaunch" not in cudart.calls


def test_engines_share_their_scratch_memory(install, bundle_dir):
    trt, cudart = install()
    build(bundle_dir)
    plan = next((bundle_dir / "engines").glob("*.plan")).read_bytes()
    cuda, manifest = Cuda(cudart), Bundle.open(bundle_dir, backend="onnxruntime").manifest
    scratch = Scratch(cuda)
    one, two = (EngineSession(trt, cuda, plan, manifest, scratch=scratch) for _ in range(2))
    inputs = draw(TEXT_INPUTS, {"batch": 1, "sequence": 8})
    before = [one.run(["sentence_embedding"], inputs), two.run(["sentence_embedding"], inputs)]
    for _ in range(2):
        one.run(["sentence_embedding"], inputs)
    scratch.reserve(1 << 16)
    assert all(context.graph for context in one._contexts.values())
    np.testing.assert_array_equal(one.run(["sentence_embedding"], inputs)[0], before[0][0])
    assert {context.scratch for context in one._contexts.values()} == {scratch.address}
    assert not any(context.graph for context in one._contexts.values()), "captured with memory that is gone"
    one.close()
    two.close()
    scratch.close()


def test_a_decoder_generates_as_on_onnxruntime(install, tmp_path):
    folder = write_bundle(tmp_path / "decoder", "decoder")
    trt, _ = install()
    build(folder)
    ids = np.array([[3, 1, 4]])
    expected = generate(Bundle.open(folder, backend="onnxruntime"), ids, max_new_tokens=6)
    trt.log.clear()
    np.testing.assert_array_equal(generate(Bundle.open(folder), ids, max_new_tokens=6), expected)
    assert [entry[1] for entry in trt.log] == [0, 1, 1, 1, 1, 1], "one profile for the prompt, one for single tokens"


def test_the_commands_of_the_device(install, bundle_dir, tmp_path, capsys):
    install()
    assert main(["build", str(bundle_dir), "--workspace", "512MiB"]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert main(["bench", str(bundle_dir), "--sequence", "8", "--rounds", "2"]) == 0
    assert "(batch 1, sequence 8, tensorrt, 2 rounds)" in capsys.readouterr().out
    ids = np.arange(30).reshape(5, 6)
    np.savez(tmp_path / "in.npz", input_ids=ids)
    for name in ("tensorrt", "onnxruntime"):
        files = ["--input", str(tmp_path / "in.npz"), "-o", str(tmp_path / f"{name}.npz")]
        assert main(["run", str(bundle_dir), "--backend", name, *files]) == 0
    outputs = [np.load(tmp_path / f"{name}.npz")["sentence_embedding"] for name in ("tensorrt", "onnxruntime")]
    assert outputs[0].shape == (5, 4), "five rows, where four at once are the most"
    np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("1k", 1000)]
)
def test_sizes_are_read(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "5 miles", "MiB"])
def test_other_texts_are_no_sizes(text):
    with pytest.raises(BundleError, match="is not a size"):
        read_size(text)


def test_a_jetson_says_which_release_it_has(tmp_path):
    path = tmp_path / "nv_tegra_release"
    assert device.tegra_release(path) == ""
    path.write_text("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: ...\n")
    assert device.tegra_release(path) == "R36.4.0"
