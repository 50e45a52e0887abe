"""The hidden size from the command line: an embedder is converted, searched, cut, and healed by the original."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import elastic as library
from elastic.record import read_record
from tests.cli.conftest import elastic
from tests.cli.test_bad_input import refused
from tests.cli.test_convert import RECIPE
from tests.embedder import write_embedder, write_pairs
from tests.tiny import MODELS

SPACE = {"hidden": [0.5, 1.0], "heads": [0.5, 1.0]}
SENTENCES = ["the old cat sits", "a quick bird sings near the red house", "the dog runs under the tree"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return write_embedder(tmp_path_factory.mktemp("embedder") / "embedder")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, embedder):
    folder = tmp_path_factory.mktemp("recipe")
    data = {"source": "sentence-pairs", "path": str(write_pairs(folder / "pairs", embedder))}
    named = {"full": {}, "narrow": {"hidden": 0.5, "heads": 0.5}}
    changed = {"space": SPACE, "granularities": named, "model": {"pretrained": str(embedder)}, "data": data}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changed}))
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory, embedder, recipe):
    folder = tmp_path_factory.mktemp("converted") / "universal"
    result = elastic("convert", embedder, "--recipe", recipe, "--num-calibration", 32, "-o", folder, "--json")
    assert result.code == 0, result.err
    return folder, result.json


def test_the_plan_and_the_record_say_what_happened(converted):
    folder, said = converted
    assert said["plan"]["hidden"] == "16, 32"
    assert said["plan"]["stock loading"].startswith("every uniform subnet but heads 2; hidden 16")
    assert {point["subnet"].get("hidden") for point in said["one_shot"]} == {None, 16}
    assert sorted(read_record(folder).ordering["hidden_order"]) == list(range(32))
    info = elastic("info", folder, "--json").json
    assert info["axes"]["hidden"] == [16, 32]
    assert info["num_subnets"] == 2 * 2**3
    assert info["subnets"]["smallest"]["cost"]["params"] < info["subnets"]["largest"]["cost"]["params"] / 1.8


def test_the_embedding_is_the_original_with_its_dimensions_in_order(converted, embedder):
    order = read_record(converted[0]).ordering["hidden_order"]
    expected = SentenceTransformer(str(embedder), device="cpu").encode(SENTENCES)
    actual = SentenceTransformer(str(converted[0]), device="cpu").encode(SENTENCES)
    assert order != sorted(order)
    assert np.abs(expected[:, order] - actual).max() <= 1e-5


def test_cut_and_healed_by_the_original(converted, recipe, tmp_path):
    subnet = tmp_path / "subnet.json"
    subnet.write_text(json.dumps({"ffn": [64] * 3, "heads": [2] * 3, "hidden": 16}))
    cut = elastic("extract", converted[0], "--subnet", subnet, "-o", tmp_path / "small")
    assert cut.code == 0, cut.err
    streamed = elastic("extract", converted[0], "--subnet", subnet, "--stream", "-o", tmp_path / "streamed")
    assert streamed.code == 0, streamed.err
    assert read_record(tmp_path / "streamed").ordering == read_record(converted[0]).ordering
    stock = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert stock.encode(SENTENCES).shape == (3, 16)
    assert stock.get_embedding_dimension() == 16
    assert AutoModel.from_pretrained(tmp_path / "small").config.num_attention_heads == 2
    healed = elastic("heal", tmp_path / "small", recipe, "-o", tmp_path / "healed")
    assert healed.code == 0, healed.err
    record = read_record(tmp_path / "healed")
    assert record.healing["steps"] > 0
    assert library.load(tmp_path / "healed").config.hidden_size == 16


@pytest.mark.parametrize("teacher", ["original", "universal"])
def test_healing_a_narrow_stream_and_a_short_embedding(embedder, recipe, tmp_path, teacher):
    """The teacher's states and embeddings are wider than those of what is healed, and its head is another one."""
    data = yaml.safe_load(recipe.read_text())
    data["space"] = {**SPACE, "embedding_dim": [8, 32]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    universal, small = tmp_path / "universal", tmp_path / "small"
    converted = elastic(
        "convert", embedder, "--recipe", tmp_path / "recipe.yaml", "--order", "magnitude", "-o", universal
    )
    assert converted.code == 0, converted.err
    subnet = json.dumps({"ffn": [64] * 3, "heads": [2] * 3, "hidden": 16, "embedding_dim": 8})
    assert elastic("extract", universal, "--subnet", subnet, "-o", small).code == 0
    named = ("--teacher", universal) if teacher == "universal" else ()
    healed = elastic(
        "heal", small, tmp_path / "recipe.yaml", *named, "-o", tmp_path / "healed", "--json",
        "--set", "training.arguments.num_train_epochs=12", "--set", "training.arguments.eval_strategy=steps",
        "--set", "training.arguments.eval_steps=0.5",
    )  # fmt: skip
    assert healed.code == 0, (healed.err, healed.exception)
    assert healed.json["quality"]["value"] > healed.json["before"]["value"]
    assert SentenceTransformer(str(tmp_path / "healed"), device="cpu").encode(SENTENCES).shape == (3, 8)


def test_a_teacher_of_other_sizes_cannot_show_its_hidden_states(converted, recipe, tmp_path):
    subnet = json.dumps({"ffn": [64] * 3, "heads": [4] * 3, "hidden": 16})
    assert elastic("extract", converted[0], "--subnet", subnet, "-o", tmp_path / "small").code == 0
    other = write_embedder(tmp_path / "other", layers=2)
    healing = ("heal", tmp_path / "small", recipe, "--teacher", other, "-o", tmp_path / "healed")
    refused(elastic(*healing), "hidden_weight compares hidden states", "(2 layers of 32, not 3 of 32)")
    without = ("--set", "training.objective.hidden_weight=0", "--set", "training.arguments.num_train_epochs=1")
    healed = elastic(*healing, *without)
    assert healed.code == 0, (healed.err, healed.exception)


def test_search_finds_a_narrow_subnet(converted):
    found = elastic("search", converted[0], "--params", "60%", "--json", "--method", "predictor")
    assert found.code == 0, found.err
    assert found.json["best"]["subnet"]["hidden"] == 16


def test_a_decoder_by_magnitude(tmp_path):
    model = MODELS["qwen3"]()
    model.save_pretrained(tmp_path / "qwen")
    space = ("--space", "{hidden: [0.5, 1.0]}", "--order", "magnitude", "--depth", "even")
    result = elastic("convert", tmp_path / "qwen", *space, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    universal = library.load(tmp_path / "out")
    with torch.no_grad(), library.active(universal, library.Subnet((64,) * 3, (4,) * 3, 16)):
        assert universal(torch.arange(5)[None]).logits.shape == (1, 5, 60)


def test_what_is_not_possible_is_refused(embedder, tmp_path):
    MODELS["gemma2"]().save_pretrained(tmp_path / "gemma")
    space = ("--space", "{hidden: [0.5, 1.0]}", "--order", "magnitude", "--depth", "even", "-o", tmp_path / "out")
    refused(
        elastic("convert", tmp_path / "gemma", *space), "the axis 'hidden' is not elastic here", "the embeddings of"
    )
    dense = shutil.copytree(embedder, tmp_path / "dense")
    modules = json.loads((dense / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (dense / "modules.json").write_text(json.dumps(modules))
    refused(elastic("convert", dense, *space), "has a Dense after its Transformer", "leave 'hidden' out")
