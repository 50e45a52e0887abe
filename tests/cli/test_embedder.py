"""An embedder with exits and dimensions, from the recipe to a folder of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

import elastic as library
from elastic.data.sentences import pairs_task
from tests.cli.conftest import elastic
from tests.embedder import write_embedder, write_pairs

TEXTS = ["the cat sits on the mat", "a red bird sings loudly"]
OBJECTIVES = {
    "labels": {"name": "task", "label_loss": "CoSENTLoss"},
    "both": {"name": "similarity", "label_loss": "CoSENTLoss", "task_weight": 1.0, "weights": {"small": 2.0}},
    "teacher": {"name": "similarity", "teacher": "original"},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    embedder = write_embedder(folder / "embedder")
    data = {
        "name": "tiny",
        "task": "sentence-similarity",
        "model": {"pretrained": str(embedder)},
        "data": {"source": "sentence-pairs", "path": str(write_pairs(folder / "pairs", embedder)), "labelled": True},
        "space": {"exit": [1, 2, 3], "embedding_dim": [8, 16, 32]},
        "granularities": {"small": {"exit": 1, "embedding_dim": 8}, "large": {}},
        "training": {
            "sampler": {"name": "joint"},
            "objective": OBJECTIVES["both"],
            "arguments": {
                "max_steps": 6, "per_device_train_batch_size": 8, "logging_steps": 3, "eval_strategy": "no",
                "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False,
            },
        },
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "universal"
    result = elastic("train", recipe, "-o", folder)
    assert result.code == 0, result.err
    return folder


def test_an_extracted_embedder_is_a_folder_of_sentence_transformers(trained, tmp_path):
    output = tmp_path / "small"
    result = elastic(
        "extract", trained, "--flops", "70%", "--uniform", "--within", "{exit: [2], embedding_dim: [16]}",
        "-o", output, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    report = result.json
    assert report["subnet"]["embedding_dim"] == 16 and report["subnet"]["ffn"] == [64, 64, 0]
    embeddings = SentenceTransformer(str(output), device="cpu").encode(TEXTS)
    whole = SentenceTransformer(str(trained), device="cpu")
    whole[0].auto_model.encoder.layer = whole[0].auto_model.encoder.layer[:2]
    wanted = whole.encode(TEXTS)[:, :16]
    assert np.allclose(embeddings, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert not any(path.name == "2_Normalize" for path in output.iterdir())
    record = json.loads((output / "elastic.json").read_text())
    assert record["test_quality"]["metric"] == "spearman"


def test_a_measured_embedding_is_cut(trained):
    qualities = [
        elastic("eval", trained, "--subnet", json.dumps(subnet), "--json").json
        for subnet in ({"ffn": [64] * 3, "heads": [4] * 3}, {"ffn": [64] * 3, "heads": [4] * 3, "embedding_dim": 8})
    ]
    values = [json.dumps(quality) for quality in qualities]
    assert values[0] != values[1]


@pytest.mark.parametrize("objective", ["labels", "teacher"])
def test_every_objective_of_embedders_trains(recipe, tmp_path, objective):
    override = f"training.objective={json.dumps(OBJECTIVES[objective])}"
    result = elastic("train", recipe, "--set", override, "-o", tmp_path / "universal")
    assert result.code == 0, result.err
    assert library.load(tmp_path / "universal") is not None


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.objective.label_loss=CosentLoss", "did you mean 'CoSENTLoss'?"),
        ("data.labelled=false", "is for labelled sentence pairs"),
        ("training.objective={name: similarity}", "with teacher: original, or with a label_loss"),
        ("training.objective={name: distillation, label_loss: CoSENTLoss}", "have no logits"),
        ("training.objective.weights={smal: 2}", "did you mean 'small'?"),
        ("training.sampler={name: sandwhich}", "'training.sampler.name' is 'sandwhich'; did you mean 'sandwich'?"),
        ("training.sampler={name: sandwich, num_randm: 1}", "did you mean 'num_random'?"),
        ("training.stages=[{start: 5, sampler: {name: joint}}]", "start at step 0"),
        ("training.stages=[{start: 0, sampler: {name: joint}, space: {exit: [7]}}]", "above the maximum"),
    ],
)
def test_methods_that_make_no_sense(recipe, tmp_path, override, part):
    result = elastic("train", recipe, "--set", override, "-o", tmp_path / "universal")
    assert result.code == 2
    assert part in " ".join(result.err.split())
    assert not (tmp_path / "universal").exists()


def test_texts_are_made_lower_case_where_the_embedder_says_so(recipe, tmp_path):
    folder = shutil.copytree(recipe.with_name("embedder"), tmp_path / "embedder")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": True}))
    first, second = (pairs_task({"train": [(text, "a cat", 1.0)], "validation": [(text, "a cat", 1.0)]}, str(folder), 8)
                     for text in ("THE Old CAT", "the old cat"))  # fmt: skip
    assert first.datasets["train"][0]["first"]["input_ids"] == second.datasets["train"][0]["first"]["input_ids"]


def test_auto_encoding_comes_before_similarity(recipe, tmp_path):
    smae = ["--set", "data.labelled=false", "--set", "training.objective={name: smae}"]
    first = elastic("train", recipe, *smae, "-o", tmp_path / "carrying")
    assert first.code == 0, first.err
    weights = load_file(tmp_path / "carrying" / "model.safetensors")
    stock = load_file(Path(yaml.safe_load(recipe.read_text())["model"]["pretrained"]) / "model.safetensors")
    assert set(weights) == set(stock)
    assert any(not np.array_equal(weights[name], stock[name]) for name in stock)
    assert SentenceTransformer(str(tmp_path / "carrying"), device="cpu").encode(TEXTS).shape == (2, 32)
    small = {"ffn": [64, 64, 0], "heads": [4, 4, 0], "embedding_dim": 16}
    cut = elastic("extract", tmp_path / "carrying", "--subnet", json.dumps(small), "-o", tmp_path / "small")
    assert cut.code == 0, cut.err
    embeddings = SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(TEXTS)
    assert embeddings.shape == (2, 16) and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    then = elastic("train", recipe, "--set", f"model.pretrained={tmp_path / 'carrying'}", "-o", tmp_path / "universal")
    assert then.code == 0, then.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.objective={name: smae}"], "learns from text alone"),
        (["data.labelled=false", "training.objective={name: smae, teacher: original}"], "learns from text alone"),
        (["data.labelled=false", "training.objective={name: smae, mask_rate: 0.6}"], "must see less"),
        (
            ["data.labelled=false", "training.objective={name: smae}", "routers={what: mlp, capacity: 0.5}"],
            "trains no routers",
        ),
    ],
)
def test_auto_encoding_that_makes_no_sense(recipe, tmp_path, changes, message):
    result = elastic("train", recipe, *(word for change in changes for word in ("--set", change)), "-o", tmp_path / "x")
    assert result.code == 2 and message in result.err
    assert not list(tmp_path.iterdir())
