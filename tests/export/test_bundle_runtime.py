from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import elastic.export.runtime
from elastic.errors import CheckError, CheckpointError
from elastic.export import bench_bundle, compare_latency, read_bundle, run_bundle, verify_bundle
from elastic.export.runtime.__main__ import main
from elastic.export.runtime.compare import compare
from elastic.export.runtime.manifest import TensorSpec, hash_file, seal

# On a device there is what comes with Python, NumPy and ONNX Runtime, and nothing else.
ON_DEVICE = """
import runpy, sys

class OnlyOnDevice:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("runtime", "numpy", "onnxruntime"):
            raise ModuleNotFoundError(f"no {name} on a device", name=name)

sys.meta_path.insert(0, OnlyOnDevice())
runpy.run_module("runtime", run_name="__main__")
"""


def on_device(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ON_DEVICE, *map(str, arguments)]
    return subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)


def edit_manifest(bundle: Path, **changes) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(data | {"seal": seal(data)}))


@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_a_bundle_verifies_itself_where_nothing_is_installed(bundle_copy, kind):
    bundle = bundle_copy(kind)
    done = on_device(bundle, "verify", ".", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["max_abs_diff"] < 1e-5
    assert report["samples"] == (5 if kind == "llama" else 3)
    assert done.stderr == ""
    done = on_device(bundle, "verify")
    assert "files are intact; largest difference" in done.stdout


def test_a_bundle_measures_and_runs_where_nothing_is_installed(exported, bundle_copy, tmp_path):
    bundle, model = bundle_copy("vit"), exported("vit")[0]
    done = on_device(bundle, "bench", ".", "--batch", 2, "--rounds", 3, "--json")
    assert json.loads(done.stdout)["sizes"] == {"batch": 2}, done.stderr
    image = np.random.default_rng(0).standard_normal((2, 1, 8, 8))
    np.save(tmp_path / "image.npy", image)
    done = on_device(bundle, "run", ".", "--input", tmp_path / "image.npy", "-o", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(torch.from_numpy(image).float()).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], expected, atol=1e-5)


def test_a_decoder_generates_where_nothing_is_installed(exported, bundle_copy, tmp_path):
    np.savez(tmp_path / "ids.npz", input_ids=np.array([[3, 1, 4]]))
    files = "--input", tmp_path / "ids.npz", "-o", tmp_path / "out.npz"
    done = on_device(bundle_copy("llama"), "run", ".", *files, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    stock = exported("llama")[0].generate(torch.tensor([[3, 1, 4]]), max_new_tokens=4, do_sample=False)
    assert np.load(tmp_path / "out.npz")["generated_ids"].tolist() == stock[:, 3:].tolist()


def test_the_runtime_imports_only_numpy_and_what_runs_graphs():
    found = set()
    for path in Path(elastic.export.runtime.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level in (0, 1)
                found |= {node.module.split(".")[0]} if node.level == 0 else set()
    # Texts are tokenised where tokenizers is there: test_texts_without_tokenizers_end_in_one_sentence.
    assert found - set(sys.stdlib_module_names) - {"tokenizers"} == {"numpy", "onnxruntime", "tensorrt"}


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.onnx", "samples.npz", "runtime/verify.py"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_last_byte, "is not the file that was exported"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"has \d+ bytes, not \d+"),
        (Path.unlink, "is missing"),
    ],
)
def test_damaged_files_fail_the_check(bundle_copy, name, damage, message):
    bundle = bundle_copy()
    damage(bundle / name)
    with pytest.raises(CheckError, match=f"'{name}' .*{message}") as caught:
        verify_bundle(bundle)
    assert caught.value.exit_code == 1
    assert main(["verify", str(bundle)]) == 1


def test_a_damaged_graph_is_not_run(bundle_copy, capsys):
    bundle = bundle_copy()
    flip_last_byte(bundle / "model.onnx")
    assert main(["bench", str(bundle)]) == 1
    assert capsys.readouterr().err.startswith("error: 'model.onnx' in the bundle")


def test_outputs_that_differ_from_the_samples_fail_the_check(bundle_copy):
    bundle = bundle_copy()
    arrays = dict(np.load(bundle / "samples.npz"))
    arrays["1.outputs.logits"] = arrays["1.outputs.logits"] + np.float32(0.5)
    np.savez(bundle / "samples.npz", **arrays)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files=files | {"samples.npz": vars(hash_file(bundle / "samples.npz"))})
    with pytest.raises(CheckError, match=r"'logits' differs by 0\.5 at batch 3, and 0\.0001 is allowed"):
        verify_bundle(bundle)


def test_samples_with_a_pickle_are_not_read(bundle_copy):
    bundle = bundle_copy()
    np.savez(bundle / "samples.npz", **{"0.inputs.pixel_values": np.array([print], dtype=object)})
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files=files | {"samples.npz": vars(hash_file(bundle / "samples.npz"))})
    with pytest.raises(CheckpointError, match="not a NumPy file of plain arrays"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "runtime/../../secret", "C:\\secret", "..\\secret", ""])
def test_paths_that_leave_the_bundle_are_refused(bundle_copy, name):
    bundle = bundle_copy()
    (bundle.parent / "secret").write_text("x")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files=files | {name: {"sha256": "0", "bytes": 1}})
    with pytest.raises(CheckpointError, match="which is outside of the bundle") as caught:
        verify_bundle(bundle)
    assert caught.value.exit_code == 2


def test_links_that_leave_the_bundle_are_refused(bundle_copy):
    bundle = bundle_copy()
    (bundle / "samples.npz").rename(bundle.parent / "samples.npz")
    (bundle / "samples.npz").symlink_to(bundle.parent / "samples.npz")
    with pytest.raises(CheckpointError, match=r"'samples\.npz', which is outside of the bundle"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, and this runtime reads up to 1"),
        ({"format_version": "1"}, "the value '1' for 'format_version'"),
        ({"kind": "coreml"}, "of kind 'coreml', and this runtime knows onnx"),
        ({"graph": "other.onnx"}, "uses the file 'other.onnx' without listing it"),
        ({"inputs": [{"name": "x", "dtype": "object", "shape": []}]}, "the type 'object'"),
        ({"inputs": [{"name": "x", "dtype": "int64", "shape": [-1]}]}, "a dimension is a whole number or a name"),
        ({"parity": {}}, "has no 'precision'"),
        ({"outputs": 3}, "the value 3 for 'outputs'"),
    ],
)
def test_manifests_that_cannot_be_used_are_refused(bundle_copy, changes, message, capsys):
    bundle = bundle_copy()
    edit_manifest(bundle, **changes)
    assert main(["verify", str(bundle)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    with pytest.raises(CheckpointError):
        read_bundle(bundle)


def test_folders_that_are_no_bundle_are_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "is not a bundle: it has no manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify_bundle(tmp_path)


def test_latency_is_reported_with_what_it_depends_on(exported):
    report = bench_bundle(exported("bert")[1].bundle_dir, batch=2, sequence=16, rounds=5, warmup=1)
    assert report.sizes == {"batch": 2, "sequence": 16}
    assert (report.threads, report.rounds, report.warmup) == (1, 5, 1)
    assert 0 < report.p10_ms <= report.median_ms <= report.p90_ms <= report.p99_ms
    assert bench_bundle(exported("bert")[1].bundle_dir, rounds=1).sizes["sequence"] == 40


def test_bundles_take_turns(exported, capsys):
    folders = [exported(kind)[1].bundle_dir for kind in ("bert", "bert_masked_lm")]
    report = compare_latency(folders, rounds=5)
    assert [bundle.bundle for bundle in report.bundles] == [str(folder) for folder in folders]
    assert report.ratios[0] == 1
    assert report.ratios[1] > 0
    assert main(["bench", str(folders[0]), "--against", str(folders[1]), "--rounds", "2"]) == 0
    assert capsys.readouterr().out.count("ratio") == 2


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"sequence": 41}, "sequence must be between 1 and 40"),
        ("bert", {"batch": 0}, "batch must be 1 or more"),
        ("vit", {"sequence": 8}, "has no sequence dimension"),
        ("vit", {"rounds": 0}, "rounds must be 1 or more"),
        ("vit", {"threads": 0}, "threads must be 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(exported, kind, settings, message):
    with pytest.raises(CheckpointError, match=message):
        bench_bundle(exported(kind)[1].bundle_dir, **settings)


def test_texts_run_without_a_mask_and_with_smaller_integers(exported, tmp_path):
    model, report = exported("llama")
    ids = np.array([[3, 1, 4, 1, 5]], dtype=np.int32)
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    done = run_bundle(report.bundle_dir, tmp_path / "ids.npz", tmp_path / "out.npz")
    assert done.outputs == {"logits": [1, 5, 60]}
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npz", "out.npz"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"pixel_values": np.zeros((1, 3, 8, 8))},
            r"must be float32 of shape \(batch, 1, 8, 8\), not float32 of",
        ),
        ({"pixel_values": np.zeros((0, 1, 8, 8))}, "must be float32 of shape"),
        ({"pixel_values": np.zeros(3, dtype=complex)}, "not complex128"),
        ({"image": np.zeros((1, 1, 8, 8))}, r"takes the inputs \['pixel_values'\], not \['image'\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(exported, tmp_path, arrays, message):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(CheckpointError, match=message):
        run_bundle(exported("vit")[1].bundle_dir, tmp_path / "in.npz", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_output_files_are_not_overwritten(exported, tmp_path):
    (tmp_path / "out.npz").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        run_bundle(exported("vit")[1].bundle_dir, tmp_path / "in.npz", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_text() == "mine"
    with pytest.raises(CheckpointError, match="there is no file"):
        run_bundle(exported("vit")[1].bundle_dir, tmp_path / "in.npz", tmp_path / "new.npz")


def test_comparison_leaves_padding_out_and_sees_swapped_classes():
    spec = TensorSpec("logits", "float32", ("batch", "sequence", 2))
    expected = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    actual = np.array([[[0.0, 1.0], [9.0, 9.0]]])
    masked = compare(spec, expected, actual, np.array([[1, 0]]), {"batch": 1})
    assert masked.failure(1e-4, 1e-5) is None
    assert "differs by 9" in compare(spec, expected, actual, None, {"batch": 1}).failure(1e-4, 1e-5)
    swapped = compare(spec, expected, expected[..., ::-1], None, {"batch": 1})
    assert "another largest class" in swapped.failure(2.0, 0.1)
    assert swapped.failure(2.0, None) is None
    assert "differs by inf" in compare(spec, expected, expected * np.nan, None, {}).failure(1.0, None)
    assert "differs by inf" in compare(spec, expected, expected[:, :1], None, {}).failure(1.0, None)
