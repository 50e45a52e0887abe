"""Every command does what it says, on a tiny model, in text and in JSON."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageClassification

import elastic as library
from elastic.extraction import largest_difference, sample_inputs
from elastic.nested import active
from elastic.space import Subnet
from tests.cli.conftest import elastic


def test_train_writes_a_stock_checkpoint(universal_dir):
    assert {"config.json", "model.safetensors", "elastic.json"} <= {path.name for path in universal_dir.iterdir()}
    assert not universal_dir.with_name("universal.training").exists()
    stock = AutoModelForImageClassification.from_pretrained(universal_dir).eval()
    ours = library.load(universal_dir)
    inputs = sample_inputs(stock.config, batch=4)
    with torch.no_grad():
        assert largest_difference(stock(**inputs).logits, ours(**inputs).logits) == 0


def test_info(universal_dir):
    text = elastic("info", universal_dir)
    assert text.code == 0
    assert "1,368 subnets" not in text.out  # the number is computed, and checked against the JSON below
    data = elastic("info", universal_dir, "--json").json
    assert f"{data['num_subnets']:,} subnets" in text.out
    assert data["num_subnets"] == 6**2 + 6
    assert data["axes"] == {"ffn": [16, 32, 64], "heads": [2, 4], "layers": [1, 2]}
    costs = [data["subnets"][name]["cost"]["flops"] for name in ("smallest", "S", "XL", "largest")]
    assert costs[0] == costs[1] < costs[2] == costs[3]


def test_input_shape_changes_costs_and_travels_along(universal_dir):
    small = elastic("info", universal_dir, "--json").json
    batch = elastic("info", universal_dir, "--input-shape", "2x1x8x8", "--json").json
    cost = batch["subnets"]["XL"]["cost"]
    assert cost["flops"] == 2 * small["subnets"]["XL"]["cost"]["flops"]
    assert cost["input_shapes"] == {"pixel_values": [2, 1, 8, 8]}


def test_eval(universal_dir):
    rows = elastic("eval", universal_dir, "--json").json
    assert [row["name"] for row in rows] == ["S", "XL"]
    assert all(row["quality"]["split"] == "validation" and row["quality"]["num_examples"] == 359 for row in rows)
    assert rows[1]["quality"]["value"] > 20
    subnet = '{"ffn": [16, 64], "heads": [2, 0]}'
    (row,) = elastic("eval", universal_dir, "--subnet", subnet, "--json").json
    assert row["kind"] == "mix"
    assert "accuracy (test, 359)" in elastic("eval", universal_dir, "--split", "test").out


def test_search_meets_every_budget(universal_dir):
    result = elastic("search", universal_dir, "--flops", "60%", "--params", "15k", "--json").json
    largest = elastic("info", universal_dir, "--json").json["subnets"]["largest"]["cost"]
    values = [point["expected_quality"] for point in result["measured"]]
    assert values == sorted(values, reverse=True)
    assert result["noise"]["deviation"] > 0
    assert 0 <= result["noise"]["weight_of_measured"] <= 1
    assert result["best"] == result["measured"][0]
    for point in result["measured"]:
        assert point["cost"]["flops"] <= 0.6 * largest["flops"]
        assert point["cost"]["params"] <= 15_000
    assert {point["kind"] for point in result["measured"]} == {"uniform", "mix"}
    assert "Best of" in elastic("search", universal_dir, "--macs", "50%", "--uniform").out


def test_a_second_search_asks_no_model(universal_copy, monkeypatch):
    first = elastic("search", universal_copy, "--flops", "60%", "--json").json
    assert first["predictor"]["error"] >= 0

    def refuse(*args, **kwargs):
        raise AssertionError("the model was asked again")

    monkeypatch.setattr("elastic.pipeline.universal.measure", refuse)
    second = elastic("search", universal_copy, "--flops", "60%", "--json")
    assert second.json == first
    assert elastic("eval", universal_copy, "--subnet", json.dumps(first["best"]["subnet"]), "--json").code == 0


def test_search_methods(universal_dir):
    for method in ("heuristic", "random", "uniform", "every-other", "evolution"):
        assert (
            elastic("search", universal_dir, "--flops", "60%", "--method", method, "--json").json["predictor"] is None
        )
    wrong = elastic("search", universal_dir, "--flops", "60%", "--method", "evolutionary")
    assert wrong.code == 2
    assert "known: " in wrong.err or "did you mean" in wrong.err
    contradiction = elastic("search", universal_dir, "--flops", "60%", "--uniform", "--method", "random")
    assert contradiction.code == 2
    assert "give one of them" in contradiction.err


def test_search_of_widths_that_suit_a_target(universal_dir):
    """Its FFN widths are 16, 32 and 64, and its hidden size is the model's own."""

    def widths(multiple_of):
        found = elastic("search", universal_dir, "--flops", "80%", "--multiple-of", multiple_of, "--json").json
        return {width for point in found["measured"] for width in point["subnet"]["ffn"]} - {0}

    assert widths("cpu") == widths("16") == {16, 32, 64}
    assert widths("tensorrt") == widths(64) == {64}
    for wrong in ("0", "-8", "gpu", "16.5"):
        result = elastic("search", universal_dir, "--flops", "80%", "--multiple-of", wrong)
        assert result.code == 2
        assert f"--multiple-of takes a whole number from 1, or cpu or tensorrt, not '{wrong}'" in result.err


@pytest.mark.parametrize("extra", [["--uniform"], []])
def test_extract_export_verify_bench(universal_dir, tmp_path, extra):
    small, bundle = tmp_path / "small", tmp_path / "bundle"
    result = elastic("extract", universal_dir, "--flops", "60%", "-o", small, "--candidates", "12", "--json", *extra)
    assert result.code == 0, result.err
    record = result.json
    assert record["verification"]["max_abs_diff"] <= 1e-5
    assert record["test_quality"]["split"] == "test"
    if extra:
        assert record["stock"]
    model, universal = library.load(small), library.load(universal_dir)
    inputs = sample_inputs(model.config, batch=3)
    with torch.no_grad(), active(universal, Subnet.from_dict(record["subnet"])):
        assert largest_difference(universal(**inputs).logits, model(**inputs).logits) <= 1e-5
    assert record["cost"]["params"] == model.num_parameters()

    assert "ONNX and PyTorch differ by" in elastic("export", small, "--to", "onnx", "-o", bundle).out
    verified = elastic("verify", bundle, "--json").json
    assert verified["max_abs_diff"] <= 1e-4
    measured = elastic("bench", bundle, "--rounds", "5", "--json").json
    assert 0 < measured["p10_ms"] <= measured["median_ms"] <= measured["p99_ms"]
    against = elastic("bench", bundle, "--against", bundle, "--rounds", "5", "--json").json
    assert len(against["ratios"]) == 2
    assert json.loads((bundle / "manifest.json").read_text())["subnet"] == record["subnet"]
    assert "largest difference" in elastic("info", small).out


def test_a_layer_that_differs_is_extracted_from_json(universal_dir, tmp_path):
    (tmp_path / "subnet.json").write_text('{"ffn": [16, 0], "heads": [0, 4]}')
    result = elastic("extract", universal_dir, "--subnet", tmp_path / "subnet.json", "-o", tmp_path / "small")
    assert result.code == 0, result.err
    assert "trust_remote_code=True) loads it, or elastic.load(" in result.err
    assert library.load(tmp_path / "small").num_parameters() < library.load(universal_dir).num_parameters()


def test_pareto(universal_dir, tmp_path):
    result = elastic("pareto", universal_dir, "-o", tmp_path / "report", "--candidates", "8", "--json")
    assert result.code == 0, result.err
    flops = [point["cost"]["flops"] for point in result.json["front"]]
    assert flops == sorted(flops)
    assert {"index.html", "pareto.png", "pareto.csv"} == {path.name for path in (tmp_path / "report").iterdir()}
    with (tmp_path / "report" / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.json["measured"]
    assert {"S", "XL"} <= {row["name"] for row in rows}


def test_what_the_budget_limits_is_in_the_table(universal_dir, tmp_path):
    found = elastic("search", universal_dir, "--memory", "95%", "--macs", "90%", "--method", "uniform")
    assert {"memory", "macs"} <= set(found.out.splitlines()[1].split())
    front = elastic("pareto", universal_dir, "-o", tmp_path / "r", "--cost", "memory_bytes", "--candidates", "4")
    columns = front.out.splitlines()[1].split()
    assert "memory" in columns and "macs" not in columns


def test_set_changes_the_recipe(recipe_file, tmp_path):
    changes = ["--set", "training.arguments.max_steps=2", "--set", "training.sampler={name: sandwich, num_random: 1}"]
    changes += ["--set", "training.objective.name=distillation"]
    result = elastic("train", recipe_file, "-o", tmp_path / "out", *changes, "--json")
    assert result.code == 0, result.err
    assert "eval_S_accuracy" in result.json["metrics"]
    record = json.loads((tmp_path / "out" / "elastic.json").read_text())
    assert record["training"]["steps"] == 2
    assert record["recipe"]["training"]["sampler"]["name"] == "sandwich"


def test_language_model_end_to_end(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 600)
    recipe = tmp_path / "lm.yaml"
    recipe.write_text(
        f"""
name: lm
task: causal-lm
model:
  family: llama
  config:
    {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64}}
data: {{source: text, paths: ["{text}"], vocab_size: 300, sequence_length: 32}}
space: {{ffn: [0.25, 1.0], heads: [0.5, 1.0]}}
training: {{sampler: {{name: joint}}, arguments: {{max_steps: 5, use_cpu: true, dataloader_pin_memory: false}}}}
"""
    )
    assert elastic("train", recipe, "-o", tmp_path / "lm").code == 0
    small = elastic("extract", tmp_path / "lm", "--flops", "70%", "--uniform", "-o", tmp_path / "small", "--json")
    assert small.code == 0, small.err
    assert small.json["quality"]["metric"] == "loss"
    assert not small.json["quality"]["higher_is_better"]
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    exported = elastic("export", tmp_path / "small", "-o", tmp_path / "bundle")
    assert exported.code == 0, exported.err
    assert (tmp_path / "bundle" / "tokenizer.json").is_file()
    assert elastic("verify", tmp_path / "bundle").code == 0


def test_help_imports_nothing_heavy():
    script = (
        "import sys, elastic, elastic.cli.app, elastic.export; from elastic.space import SearchSpace; "
        "elastic.cli.app.app(['--help'], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'onnx', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "extract" in done.stdout


def test_commands_that_train_nothing_import_no_trainer():
    heavy = "{'transformers.trainer', 'datasets', 'pandas', 'scipy.stats', 'sklearn', 'sentence_transformers'}"
    script = (
        "import sys; from elastic.pipeline import Universal, extract_checkpoint; import elastic.selection.report; "
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_version():
    assert elastic("--version").out.strip() == library.__version__


def test_public_names_are_frozen():
    assert library.__all__ == [
        "Budget", "CostModel", "ElasticError", "ElasticTrainer", "LatencyTable", "RoutedTrainer", "Routing",
        "SearchSpace", "Subnet", "active", "add_routers", "extract", "freeze_routers", "load", "make_elastic", "routed",
        "search", "speculative_generate", "stream_extraction",
    ]  # fmt: skip
    assert all(callable(getattr(library, name)) for name in library.__all__)


@pytest.mark.parametrize("package", ["elastic", "elastic.pipeline"])
def test_public_names_are_not_hidden_by_modules(package):
    """Importing a module puts it into its package, under its own name."""
    found = importlib.import_module(package)
    assert not set(found.__all__) & {module.name for module in pkgutil.iter_modules(found.__path__)}
    assert all(callable(getattr(found, name)) for name in found.__all__)
