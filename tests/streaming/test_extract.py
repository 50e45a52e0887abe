"""Cutting weight files gives what cutting the model in memory gives, to the byte."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import elastic
import elastic.streaming.extract as extract_module
from elastic.checkpoint import load, save_checkpoint
from elastic.cost import CostModel
from elastic.cuts import find_cuts
from elastic.errors import CheckError, CheckpointError
from elastic.extraction import extract
from elastic.families import input_shapes
from elastic.folder import sha256
from elastic.nested import get_elastic
from elastic.record import CheckpointRecord
from elastic.space import Subnet
from elastic.streaming import source, stream_extraction
from tests.conftest import few_families, make_tiny_elastic, portable_subnets
from tests.tiny import MODELS


def save_universal(model, folder, **options):
    """Write a universal checkpoint, as training does."""
    shapes = {name: list(shape) for name, shape in input_shapes(model.config, batch=1, tokens=16).items()}
    record = CheckpointRecord(
        kind="universal",
        family=model.config.model_type,
        elastic_version=elastic.__version__,
        input_shapes=shapes,
        space=get_elastic(model).space.to_dict(),
    )
    folder.mkdir()
    model.save_pretrained(folder, **options)
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    (folder / "elastic.json").write_text(record.model_copy(update={"files": files}).model_dump_json())
    return folder


def mixed(model) -> Subnet:
    """A subnet whose layers differ, and skip sub-layers."""
    heads = 4 if get_elastic(model).dims.kv_heads == 1 else 2
    return Subnet(ffn=(48, 0, 16), heads=(4, heads, 0))


def without_first(model) -> Subnet:
    return Subnet(ffn=(0, 20, 64), heads=(0, 4, 4))


def weights_of(folder):
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def extracted_in_memory(folder, subnet, output):
    """As `elastic.pipeline.extract_checkpoint` writes it."""
    output.mkdir()
    record = CheckpointRecord(kind="extracted", family="x", elastic_version="", input_shapes={})
    save_checkpoint(extract(load(folder), subnet), record, output)
    return output


def smallest_stock(model) -> Subnet:
    return portable_subnets(model)[0]


def test_same_bytes_as_in_memory(universal, tmp_path):
    check_same_bytes(universal, tmp_path, mixed(universal))


@few_families
@pytest.mark.parametrize("choose", [without_first, smallest_stock])
def test_same_bytes_of_other_subnets(universal, tmp_path, choose):
    check_same_bytes(universal, tmp_path, choose(universal))


def check_same_bytes(universal, tmp_path, subnet):
    folder = save_universal(universal, tmp_path / "universal")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = extracted_in_memory(folder, subnet, tmp_path / "memory")
    record = stream_extraction(folder, subnet, tmp_path / "streamed")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (expected / name).exists() == (tmp_path / "streamed" / name).exists()
        if (expected / name).exists():
            assert (expected / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()
    assert record.verification["max_abs_diff"] <= 1e-5
    shapes = {name: tuple(shape) for name, shape in record.input_shapes.items()}
    assert record.cost == CostModel.of(universal, shapes).cost(subnet).to_dict()
    small = load(tmp_path / "streamed")
    assert torch.equal(next(small.parameters()), next(load(tmp_path / "streamed").parameters()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory", "streamed", "universal"]


@few_families
def test_several_files_on_both_sides(universal, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "CHUNK_BYTES", 1000)
    folder = save_universal(universal, tmp_path / "universal", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    subnet = mixed(universal)
    expected = extracted_in_memory(folder, subnet, tmp_path / "memory")
    stream_extraction(folder, subnet, tmp_path / "streamed", max_shard_size="10KB")
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) > 1
    one, other = weights_of(expected), weights_of(tmp_path / "streamed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    index = json.loads((tmp_path / "streamed" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == other.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in other.values())
    a, b = extract(load(folder), subnet).state_dict(), load(tmp_path / "streamed").state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
@pytest.mark.parametrize("subnet", [Subnet((32,) * 3, (2,) * 3, hidden=16), Subnet((48, 0, 16), (4, 2, 0), hidden=16)])
def test_a_narrower_stream(name, subnet, tmp_path):
    folder = save_universal(make_tiny_elastic(MODELS[name]()), tmp_path / "universal")
    stream_extraction(folder, subnet, tmp_path / "streamed")
    one, other = extract(load(folder), subnet).state_dict(), load(tmp_path / "streamed").state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "vit"])
def test_half_precision(name, dtype, tmp_path):
    model = make_tiny_elastic(MODELS[name]().to(dtype))
    folder = save_universal(model, tmp_path / "universal")
    subnet = mixed(model)
    expected = extracted_in_memory(folder, subnet, tmp_path / "memory")
    record = stream_extraction(folder, subnet, tmp_path / "streamed")
    weights = weights_of(tmp_path / "streamed")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert record.cost["weight_bytes"] == 2 * record.cost["params"]
    for file in ("model.safetensors", "config.json"):
        assert (expected / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()


def test_the_layers_of_a_wrong_extraction_are_found(tmp_path, monkeypatch):
    model = make_tiny_elastic(MODELS["phi3"]())
    folder = save_universal(model, tmp_path / "universal")

    def first_rows(family, model, small, subnet):
        """Of the fused projection too, which is wrong."""
        return {
            name: dataclasses.replace(cut, ranges=tuple((slice(0, n),) for n in small.state_dict()[name].shape))
            for name, cut in find_cuts(family, model, small, subnet).items()
        }

    monkeypatch.setattr("elastic.streaming.extract.find_cuts", first_rows)
    with pytest.raises(CheckError, match="^layer 0 of the extracted .* nothing was written"):
        stream_extraction(folder, mixed(model), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["universal"]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_tensor_that_went_wrong_on_its_way_is_found(name, tmp_path, monkeypatch):
    model = make_tiny_elastic(MODELS["llama"]())
    folder = save_universal(model, tmp_path / "universal")
    whole = extract_module.write_file

    def damaged(path, layout, read, on_bytes):
        return whole(path, layout, lambda n: (t + 1 if n == name else t for t in read(n)), on_bytes)

    monkeypatch.setattr(extract_module, "write_file", damaged)
    with pytest.raises(CheckError, match="nothing was written"):
        stream_extraction(folder, get_elastic(model).resolved.largest, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["universal"]


def test_a_universal_model_whose_files_do_not_fit(tmp_path):
    model = make_tiny_elastic(MODELS["llama"]())
    folder = save_universal(model, tmp_path / "universal")
    weights = load_file(folder / "model.safetensors")
    subnet = mixed(model)

    def refuses(message, weights):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            stream_extraction(folder, subnet, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["universal"]

    refuses("'model.norm.weight' is missing", {n: t for n, t in weights.items() if n != "model.norm.weight"})
    refuses("'extra.weight' in model.safetensors is foreign", {**weights, "extra.weight": torch.zeros(2)})
    refuses(r"'lm_head.weight' has the shape \[3, 3\]", {**weights, "lm_head.weight": torch.zeros(3, 3)})
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        stream_extraction(folder, subnet, tmp_path / "out")
