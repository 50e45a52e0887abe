"""Whatever happens to a bundle ends in one sentence and the right exit code, and never in another answer."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.export.runtime.__main__ import main
from elastic.export.runtime.errors import BundleError, VerificationError
from elastic.export.runtime.manifest import read_manifest, resolve_inside
from elastic.export.runtime.samples import load_arrays
from elastic.export.runtime.session import Bundle


@pytest.fixture(scope="module")
def bundle(exported, tmp_path_factory):
    """A copy of a bundle to damage and to repair again."""
    return Path(shutil.copytree(exported("bert")[1].bundle_dir, tmp_path_factory.mktemp("damage") / "bundle"))


@pytest.fixture(scope="module")
def inputs():
    return {"input_ids": np.array([[3, 1, 4]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}


@pytest.fixture(scope="module")
def answer(bundle, inputs):
    return Bundle.open(bundle, threads=1).run(inputs)


FILES = ["manifest.json", "model.onnx", "samples.npz", "bert-tokenizer.json", "runtime/__init__.py", "runtime/run.py"]


@settings(max_examples=25)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_found(bundle, inputs, answer, capsys, name, place, change):
    path = bundle / name
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[int(place * len(damaged))] ^= change
    try:
        path.write_bytes(damaged)
        code = main(["verify", str(bundle), "--threads", "1"])
        message = capsys.readouterr().err
        same_meaning = name == "manifest.json" and code == 0
        if same_meaning:  # a space for a line break, or another key than that of the seal
            was, now = json.loads(intact), json.loads(damaged)
            assert all(was[key] == now.get(key) for key in was if key != "seal")
        else:
            assert code in (1, 2), (name, place)
            assert message.startswith("error: ")
            assert message.count("\n") == 1
        try:
            found = Bundle.open(bundle, threads=1).run(inputs)
        except BundleError:
            return
        np.testing.assert_array_equal(found["logits"], answer["logits"])
    finally:
        path.write_bytes(intact)


@settings(max_examples=25)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_damaged_inputs_end_in_one_sentence(bundle, tmp_path_factory, place, change):
    damaged = bytearray((bundle / "samples.npz").read_bytes())
    damaged[int(place * len(damaged))] ^= change
    path = tmp_path_factory.mktemp("in") / "in.npz"
    path.write_bytes(damaged)
    try:
        load_arrays(path)
    except BundleError as error:
        assert "is not a NumPy file" in str(error)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def every_place(data, place=()):
    yield place
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield from every_place(value, (*place, key))


@settings(max_examples=60)
@given(st.data(), JSON)
def test_only_bundle_errors_leave_the_manifest_reader(bundle, tmp_path_factory, data, junk):
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["seal"]
    mutated = {"manifest": copy.deepcopy(manifest)}
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(every_place(mutated["manifest"]))))
        at = mutated
        for key in ("manifest", *place)[:-1]:
            at = at[key]
        last = ("manifest", *place)[-1]
        if data.draw(st.booleans()) or last == "manifest":
            at[last] = copy.deepcopy(junk)
        else:
            del at[last]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "manifest.json").write_text(json.dumps(mutated["manifest"]))
    try:
        read_manifest(folder)
    except BundleError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 5000, '{"format_version": NaN}', '{"format_version": 1e999}', "\xff", '"', "3", "[]"]
)
def test_texts_that_are_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", "loop"])
def test_names_that_no_file_has(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    try:
        path = resolve_inside(tmp_path, name)
    except BundleError as error:
        assert "outside of the bundle" in str(error)
    else:
        assert not path.is_file()


def test_a_changed_manifest_is_found_and_a_newer_one_is_named(bundle_copy, capsys):
    bundle = bundle_copy()
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data))  # laid out otherwise
    assert main(["verify", str(bundle)]) == 0
    data["parity"]["tolerance"] = 9.0
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(VerificationError, match=r"is not as it was written \(its seal differs\)"):
        read_manifest(bundle)
    (bundle / "manifest.json").write_text(json.dumps(data | {"format_version": 99}))
    assert main(["verify", str(bundle)]) == 2
    assert "format version 99, and this runtime reads up to" in capsys.readouterr().err


def test_weights_of_another_bundle_are_refused(exported, bundle_copy):
    bundle = bundle_copy("vit")
    shutil.copyfile(exported("deit")[1].bundle_dir / "model.onnx", bundle / "model.onnx")
    with pytest.raises(VerificationError, match=r"'model\.onnx' in the bundle"):
        Bundle.open(bundle)


def run_in(bundle, *arguments):
    # The bundle's own runtime, not that of this checkout.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "runtime", *map(str, arguments)]
    return subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)


def test_a_damaged_runtime_does_not_run(bundle_copy):
    bundle = bundle_copy()
    path = bundle / "runtime" / "session.py"
    path.write_text(path.read_text().replace("==", "!=", 1))
    done = run_in(bundle, "verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'runtime/session.py' in the bundle")
    assert done.stderr.count("\n") == 1
    path.unlink()
    assert "'runtime/session.py' is missing" in run_in(bundle, "verify").stderr


def test_a_moved_bundle_works(bundle_copy, tmp_path):
    moved = bundle_copy().rename(tmp_path / "another place")
    assert run_in(moved, "verify").returncode == 0
    assert main(["verify", str(moved)]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": np.ones((1, 1), dtype=np.int64)}, "'attention_mask' must be int64 of shape"),
        ({"attention_mask": np.ones((1, 3), dtype=np.int32)}, "not int32"),
        ({"input_ids": np.array([3, 1, 4])}, "'input_ids' must be int64 of shape"),
        ({"ids": np.array([[3]])}, "takes the inputs"),
        ({"input_ids": np.ones((1, 41), dtype=np.int64), "attention_mask": np.ones((1, 41), dtype=np.int64)},
         "sequence must be between 1 and 40"),
        ({"input_ids": np.array([[3, 99, 1]])}, "cannot run these inputs"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_not_run(bundle, inputs, changes, message):
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle, threads=1).run(inputs | changes)


def test_a_mask_of_another_length_is_not_stretched_over_the_cache(exported):
    opened = Bundle.open(exported("llama")[1].bundle_dir, threads=1)
    cache = {
        spec.name: np.zeros([{"batch": 1, "past": 2}.get(dim, dim) for dim in spec.shape], dtype=spec.dtype)
        for spec in opened.manifest.inputs
        if spec.name.startswith("past")
    }
    mask = np.ones((1, 1), dtype=np.int64)
    with pytest.raises(BundleError, match="'attention_mask' has 1 columns, and 2 cached and 1 new tokens need 3"):
        opened.run({"input_ids": np.array([[3]]), "attention_mask": mask, **cache})


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_share_a_bundle(bundle, spinning):
    opened = Bundle.open(bundle, threads=2, spinning=spinning)
    texts = [np.array([[index + 1, 7, 2 * index + 3][: 1 + index % 3]]) for index in range(8)]
    feeds = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in texts]
    alone = [opened.run(feed)["logits"] for feed in feeds]
    wrong, start = [], threading.Barrier(len(feeds))

    def work(index):
        start.wait()
        for _ in range(20):
            if not np.array_equal(opened.run(feeds[index])["logits"], alone[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
