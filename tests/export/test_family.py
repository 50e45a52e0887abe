from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import CheckError, CheckpointError
from elastic.export import (
    NamedSubnet,
    bench_subnets,
    export_family,
    export_onnx,
    open_session,
    read_bundle,
    run_bundle,
    verify_bundle,
)
from elastic.export.runtime.errors import BundleError, VerificationError
from elastic.export.runtime.generate import generate
from elastic.export.runtime.samples import read_samples
from elastic.export.runtime.session import Bundle
from elastic.export.source import read_universal
from elastic.export.weights import ALIGNMENT, SharedWeights
from elastic.extraction import extract
from elastic.nested import get_elastic, make_elastic
from elastic.space import SearchSpace, Subnet
from tests.conftest import fitting, make_tiny_elastic
from tests.embedder import write_embedder
from tests.export.test_bundle_runtime import edit_manifest, flip_last_byte, on_device
from tests.tiny import MODELS, sweep

HALF = Subnet(ffn=(32, 32, 32), heads=(2, 2, 2))
DIFFERENT = Subnet(ffn=(16, 0, 32), heads=(2, 4, 0))


def named(model, **subnets) -> list[NamedSubnet]:
    """Name the largest and others, with costs in this order."""
    whole = {"XL": get_elastic(model).resolved.largest, **subnets}
    return [
        NamedSubnet(name, fitting(model, subnet), {"flops": 100 // (index + 1)})
        for index, (name, subnet) in enumerate(whole.items())
    ]


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Return a function that exports a family once, and gives the universal model with its report."""
    folder, done = tmp_path_factory.mktemp("families"), {}

    def get(kind: str):
        if kind not in done:
            model = make_tiny_elastic(MODELS[kind]())
            done[kind] = model, export_family(model, named(model, M=HALF, H=DIFFERENT), folder / kind)
        return done[kind]

    return get


@pytest.fixture
def family_copy(family, tmp_path):
    import shutil

    return Path(shutil.copytree(family("bert")[1].bundle_dir, tmp_path / "bert"))


def external_bytes(graph: Path) -> int:
    """Sum what a graph refers to, every region once."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors if tensor.external_data]
    return sum({int(place["offset"]): int(place["length"]) for place in places}.values())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_members_are_bit_identical_to_files_of_their_own_and_cost_no_room(family, kind, tmp_path):
    model, report = family(kind)
    session = open_session(report.bundle_dir)
    for member in report.manifest.members:
        export_onnx(extract(model, Subnet.from_dict(member.subnet)), tmp_path / member.name)
        alone = Bundle.open(tmp_path / member.name)
        for sample in read_samples(tmp_path / member.name / "samples.npz"):
            expected = alone.run(sample.inputs)
            actual = session.run(sample.inputs, subnet=member.name)
            for name, array in expected.items():
                np.testing.assert_array_equal(actual[name], array)
    largest = external_bytes(report.bundle_dir / "XL.onnx")
    assert report.weight_bytes < 1.02 * largest
    assert report.weight_bytes == (report.bundle_dir / "weights.bin").stat().st_size
    assert report.unshared_bytes > 1.5 * largest


@pytest.mark.parametrize("universal", sweep(("bert", "gpt2", "llama", "phi3")), indirect=True)
def test_every_family_shares_all_weights_of_its_subnets(universal, tmp_path):
    report = export_family(universal, named(universal, H=DIFFERENT), tmp_path / "out")
    assert report.max_abs_diff < 1e-5
    assert report.weight_bytes <= 1.02 * external_bytes(tmp_path / "out" / "XL.onnx") + 20 * ALIGNMENT
    for member in report.manifest.members:
        proto = onnx.load(tmp_path / "out" / member.graph, load_external_data=False)
        assert {node.domain for node in proto.graph.node} == {""}
        assert (proto.opset_import[0].version, proto.ir_version) == (20, 10)
        for tensor in proto.graph.initializer:
            assert all(int(e.value) % ALIGNMENT == 0 for e in tensor.external_data if e.key == "offset")


def test_a_vocabulary_that_is_tied_is_stored_once(tmp_path):
    model = make_tiny_elastic(MODELS["gpt2"]())
    report = export_family(model, named(model), tmp_path / "out")
    tensors = onnx.load(tmp_path / "out" / "XL.onnx", load_external_data=False).graph.initializer
    places = {(entry.value, *t.dims) for t in tensors for entry in t.external_data if entry.key == "offset"}
    vocabularies = [t for t in tensors if tuple(t.dims) == (60, 32)]
    assert len(vocabularies) == 2, "one to look words up in, one to multiply with"
    assert len([place for place in places if place[1:] == (60, 32)]) == 1
    assert report.unshared_bytes - report.weight_bytes >= 60 * 32 * 4


def test_a_hidden_size_of_its_own_is_stored_again(tmp_path):
    model = make_tiny_elastic(MODELS["bert"]())
    narrow = replace(get_elastic(model).resolved.largest, hidden=20)
    report = export_family(model, named(model, narrow=narrow), tmp_path / "out")
    assert report.weight_bytes > 1.3 * external_bytes(tmp_path / "out" / "XL.onnx")
    assert verify_bundle(tmp_path / "out").max_abs_diff < 1e-5


def test_an_embedder_has_embeddings_of_several_sizes(tmp_path):
    from transformers import BertModel

    folder = write_embedder(tmp_path / "embedder")
    space = SearchSpace(ffn=[0.5, 1.0], layers=[2, 3], embedding_dim=[8, 32])
    model = make_elastic(BertModel.from_pretrained(folder), space)
    source = read_universal(folder, model)
    small = Subnet(ffn=(32, 0, 64), heads=(4, 0, 4), embedding_dim=8)
    export_family(model, named(model, S=small), tmp_path / "out", wrap=source.wrap, **source.details)
    (tmp_path / "texts.txt").write_text("a red cat\nthe old dog runs\n")
    for name, width in (("XL", 32), ("S", 8)):
        report = run_bundle(tmp_path / "out", tmp_path / "texts.txt", tmp_path / f"{name}.npz", subnet=name)
        assert report.outputs == {"sentence_embedding": [2, width]}
        assert report.subnet == name
    report = run_bundle(tmp_path / "out", tmp_path / "texts.txt", tmp_path / "late.npz", deadline="0.001ms")
    assert report.subnet in ("XL", "S")
    report = run_bundle(tmp_path / "out", tmp_path / "texts.txt", tmp_path / "early.npz", deadline="60s")
    assert report.subnet == "XL"
    norms = np.linalg.norm(np.load(tmp_path / "S.npz")["sentence_embedding"], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_the_manifest_says_what_each_member_is(family):
    report = family("llama")[1]
    manifest = read_bundle(report.bundle_dir)
    assert manifest == report.manifest
    assert (manifest.kind, manifest.format_version, manifest.weights) == ("family", 1, "weights.bin")
    assert [member.name for member in manifest.members] == ["XL", "M", "H"]
    xl, half, _ = manifest.members
    assert (manifest.graph, manifest.parity, manifest.subnet) == (xl.graph, xl.parity, xl.subnet)
    assert half.subnet == HALF.to_dict()
    assert half.inputs[2].shape == ("batch", 1, "past", 8)
    assert xl.inputs[2].shape == ("batch", 2, "past", 8)


def test_a_family_verifies_measures_and_runs_where_nothing_is_installed(family_copy, tmp_path):
    done = on_device(family_copy, "verify", ".", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["subnets"].keys() == {"XL", "M", "H"}
    assert found["samples"] == 9
    assert found["max_abs_diff"] < 1e-5
    done = on_device(family_copy, "bench", ".", "--rounds", 2, "--sequence", 8)
    assert done.stdout.count("ratio") == 3, done.stderr
    np.savez(tmp_path / "in.npz", input_ids=np.array([[3, 1, 4]]))
    files = "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz"
    done = on_device(family_copy, "run", ".", *files, "--subnet", "M")
    assert "by M" in done.stdout, done.stderr
    done = on_device(family_copy, "run", ".", "--input", tmp_path / "in.npz", "-o", tmp_path / "2.npz", "--subnet", "Q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no subnet 'Q' in this bundle; it has XL, M, H" in done.stderr


def test_weights_of_another_family_are_not_run(family_copy):
    flip_last_byte(family_copy / "weights.bin")
    for run in (open_session, verify_bundle, bench_subnets):
        with pytest.raises(CheckError, match=r"'weights\.bin' .*is not the file that was exported"):
            run(family_copy)
    with pytest.raises(VerificationError, match=r"weights\.bin"):
        Bundle.open(family_copy, subnet="M")


def test_a_session_loads_a_member_when_it_is_needed_and_once(family):
    session = open_session(family("bert")[1].bundle_dir, threads=1)
    assert session.names == ("XL", "M", "H")
    assert not session._graphs
    sample = read_samples(session.folder / "M.npz")[0]
    session.run(sample.inputs, subnet="M")
    assert list(session._graphs) == ["M.onnx"]
    assert session.bundle("M") is session.bundle("M")
    assert session.bundle() is session.bundle("XL")


def test_threads_share_a_session(family):
    session = open_session(family("bert")[1].bundle_dir, threads=1)
    samples = {name: read_samples(session.folder / f"{name}.npz") for name in ("XL", "M", "H")}
    wrong = []

    def work(name):
        for sample in samples[name] * 5:
            found = session.run(sample.inputs, subnet=name)["logits"]
            wrong.extend([name] * (not np.allclose(found, sample.outputs["logits"], atol=1e-5)))

    threads = [threading.Thread(target=work, args=[name]) for name in (*samples, *samples)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(session._graphs) == 3


def test_a_deadline_picks_a_member_that_takes_the_inputs(family):
    session = open_session(family("llama")[1].bundle_dir, threads=1)
    prompt = {"input_ids": np.array([[3, 1, 4]]), "attention_mask": np.ones((1, 3), np.int64)}
    assert session.choose(prompt, 5.0) == "H", "nothing is measured yet: the cheapest"
    assert session.warm_up(prompt).keys() == {"XL", "M", "H"}
    assert session.choose(prompt, 1e6) == "XL"
    assert "logits" in session.run(prompt, deadline_ms=1e6)
    with_cache = read_samples(session.folder / "M.npz")[2].inputs
    assert session.choose(with_cache, 1e6) == "M", "a cache fits one subnet"
    for deadline in (0, -1, float("nan")):
        with pytest.raises(BundleError, match="a deadline is a number of milliseconds above 0"):
            session.run(prompt, deadline_ms=deadline)
    with pytest.raises(BundleError, match="either a subnet or a deadline"):
        session.run(prompt, deadline_ms=1.0, subnet="M")


def test_any_member_generates(family):
    session = open_session(family("llama")[1].bundle_dir)
    ids = np.array([[3, 1, 4]])
    for name in session.names:
        assert generate(session.bundle(name), ids, max_new_tokens=3).shape == (1, 3)


def test_a_session_runs_a_bundle_of_one_graph(exported):
    folder = exported("bert")[1].bundle_dir
    session = open_session(folder)
    sample = read_samples(folder / "samples.npz")[0]
    assert session.names == (None,)
    expected = session.run(sample.inputs)["logits"]
    np.testing.assert_array_equal(session.run(sample.inputs, deadline_ms=5.0)["logits"], expected)
    with pytest.raises(BundleError, match="it has one fixed graph alone"):
        session.run(sample.inputs, subnet="M")


def member_changes(position: int, **changes):
    def change(data):
        data["members"][position].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(members=[]), "of kind 'family' and has no members, which do not go together"),
        (lambda data: data.update(kind="onnx"), "of kind 'onnx' and has 3 members, which do not go together"),
        (lambda data: data.update(weights=None), "names no 'weights'"),
        (lambda data: data.update(weights="other.bin"), "uses the file 'other.bin' without listing it"),
        (lambda data: data["members"].reverse(), "is not that of its first member"),
        (member_changes(1, graph="../M.onnx"), r"uses the file '\.\./M\.onnx' without listing it"),
        (member_changes(1, name="xl"), "differ in more than their case"),
        (member_changes(1, name="a/b"), "has a member named 'a/b'"),
        (member_changes(1, controls={"ffn": [1]}), r"sets the controls \['ffn'\] for 'M'"),
        (member_changes(1, subnet=None), "the value None for 'subnet'"),
        (
            lambda data: data.update(controls=[{"name": "ffn", "dtype": "int64", "shape": [3]}]),
            "of kind 'family' and has 1 control inputs",
        ),
    ],
)
def test_manifests_of_families_are_checked(family_copy, change, message):
    data = json.loads((family_copy / "manifest.json").read_text())
    change(data)
    edit_manifest(family_copy, **data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bundle(family_copy)
    assert "\n" not in str(caught.value)


def test_members_need_names_of_their_own(tmp_path):
    model = make_tiny_elastic(MODELS["bert"]())
    for name, message in [("xl", "two subnets are called"), ("a/b", "cannot be the name of a subnet's file")]:
        with pytest.raises(CheckpointError, match=message):
            export_family(model, named(model, **{name: HALF}), tmp_path / "out")
    with pytest.raises(CheckpointError, match="at least one subnet"):
        export_family(model, [], tmp_path / "out")
    extra = tmp_path / "weights.bin"
    extra.touch()
    with pytest.raises(CheckpointError, match=r"has another file 'weights\.bin'"):
        export_family(model, named(model), tmp_path / "out", extra_files=[extra])
    assert list(tmp_path.iterdir()) == [extra]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(256, 2000)), min_size=1, max_size=12))
def test_what_begins_alike_lies_in_one_place(tmp_path_factory, choices):
    wholes = [np.random.default_rng(seed).bytes(2000) for seed in range(4)]
    tensors = sorted((wholes[which][:length] for which, length in choices), key=len, reverse=True)
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    with path.open("w+b") as file:
        shared = SharedWeights(file)
        offsets = [shared.put(tensor) for tensor in tensors]
    data = path.read_bytes()
    for offset, tensor in zip(offsets, tensors, strict=True):
        assert offset % ALIGNMENT == 0
        assert data[offset : offset + len(tensor)] == tensor
    assert len(set(offsets)) == len({which for which, _ in choices})
    assert shared.stored_bytes == len(data)
    assert shared.referenced_bytes == sum(map(len, tensors))
