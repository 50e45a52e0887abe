"""Bad input ends in one sentence and exit code 2; nothing is overwritten, nothing half-written, no traceback."""

from __future__ import annotations

import json
import shutil

import pytest

from elastic.cli.output import print_json
from tests.cli.conftest import elastic, elastic_process


def refused(result, *parts):
    assert result.code == 2, (result.out, result.err, result.exception)
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.err
    for part in parts:
        assert part in lines[0]


def change(path, **values):
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("space.fnn=[0.5]", ["unknown axis 'fnn'", "did you mean 'ffn'?"]),
        ("space.ffn=[65]", ["ffn=65 is above the maximum of this model, which is 64"]),
        ("space.ffn=[0.3]", ["ffn=0.3 of 64 is 19.2, not a whole number"]),
        ("space.heads=[0.4]", ["heads=0.4 of 4 is 1.6, not a whole number"]),
        ("space.layers=[3]", ["layers=3 is above the maximum of this model, which is 2"]),
        ("granularities.S={depth: 1}", ["unknown axis 'depth'"]),
        ("granularities.S={ffn: 0.125}", ["ffn=8 is not in the space; its choices are [16, 32, 64]"]),
        ("trainin.sampler.name=joint", ["unknown key 'trainin'; did you mean 'training'?"]),
        ("training.smapler={name: joint}", ["unknown key 'training.smapler'; did you mean 'sampler'?"]),
        ("training.sampler.name=sandwhich", ["'training.sampler.name' is 'sandwhich'", "'sandwich'"]),
        ("training.arguments.learning_rat=1", ["'training.arguments.learning_rat'", "did you mean 'learning_rate'?"]),
        ("training.arguments.output_dir=x", ["training.arguments.output_dir is set by Elastic"]),
        ("training.arguments.lr_scheduler_type=x", ["training.arguments"]),
        ("training.arguments.learning_rate=abc", ["learning_rate is 'abc', and must be a number."]),
        ("training.arguments.learning_rate=.nan", ["learning_rate is nan, and must be a number of at least 0."]),
        ("training.arguments.report_to=nothing", ["training.arguments: nothing is not supported"]),
        ("granularities={'': {}}", ["'granularities", "at least 1 character"]),
        ("training.arguments.max_steps=2.5", ["max_steps is 2.5, and must be a whole number."]),
        (
            "training.arguments.per_device_train_batch_size=0",
            ["is 0, and must be a whole number of at least 1."],
        ),
        ("training.objective.name=distillation", None),
        ("model.family=t5", ["model.family is 't5'", "audio-spectrogram-transformer, bert"]),
        ("model.family=null", ["needs either 'family' or 'pretrained'"]),
        ("model.config.hiden_size=3", ["unknown key 'model.config.hiden_size'; did you mean 'hidden_size'?"]),
        ("data.sourc=digits", ["unknown key 'data.sourc'; did you mean 'source'?"]),
        ("data.source=mnist", ["'data.source' is 'mnist'; known: digits, docstrings"]),
        ("data.test=0.9", ["'data.test' is 0.9"]),
        ("data={source: stdlib}", ["is for the task causal-lm, not image-classification"]),
        ("data={source: images, path: /nowhere}", ["there is no data folder /nowhere"]),
        ("seed=-1", ["'seed' is -1"]),
        ("noequals", ["--set noequals: write it as key.subkey=value"]),
    ],
)
def test_recipes_that_make_no_sense(recipe_file, tmp_path, override, parts):
    if parts is None:
        result = elastic("train", recipe_file, "-o", tmp_path / "out", "--set", override, "--set",
                         "training.sampler.name=uniform")  # fmt: skip
        refused(result, "needs several subnets a step")
    else:
        refused(elastic("train", recipe_file, "-o", tmp_path / "out", "--set", override), *parts)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_recipes_that_are_none(tmp_path):
    out = tmp_path / "out"
    refused(elastic("train", tmp_path / "no.yaml", "-o", out), "there is no recipe at")
    (tmp_path / "r.yaml").write_text("a: [")
    refused(elastic("train", tmp_path / "r.yaml", "-o", out), "is not valid YAML")
    (tmp_path / "r.yaml").write_text("")
    refused(elastic("train", tmp_path / "r.yaml", "-o", out), "is empty or not a mapping")
    (tmp_path / "r.yaml").write_text("name: x")
    refused(elastic("train", tmp_path / "r.yaml", "-o", out), "the key 'task' is missing")


def test_empty_data(tmp_path, recipe_file):
    for content, message in (("", "hold no text"), ("short", "the data has no train examples")):
        (tmp_path / "text.txt").write_text(content)
        result = elastic(
            "train", recipe_file, "-o", tmp_path / "out", "--set", "task=causal-lm", "--set",
            f"data={{source: text, paths: ['{tmp_path / 'text.txt'}']}}",
        )  # fmt: skip
        refused(result, message)


def test_budgets(universal_dir, tmp_path):
    smallest = elastic("info", universal_dir, "--json").json["subnets"]["smallest"]["cost"]
    for option, name in (("--flops", "flops"), ("--params", "params"), ("--memory", "memory_bytes")):
        refused(elastic("extract", universal_dir, option, "1k", "-o", tmp_path / "x"), f"({smallest[name]})")
    refused(elastic("extract", universal_dir, "--flops", "many", "-o", tmp_path / "x"), "'many' is not a budget")
    for text in ("-5", "0%", "NaN", "inf", "1e-99999999999999999999", "9" * 40):
        refused(elastic("extract", universal_dir, "--flops", text, "-o", tmp_path / "x"), f"'{text}' is not a budget")
    refused(elastic("extract", universal_dir, "-o", tmp_path / "x"), "no budget is given; add --flops 2G")
    refused(elastic("search", universal_dir), "no budget is given")
    refused(elastic("extract", universal_dir, "--flops", "1G", "--subnet", "{}", "-o", tmp_path / "x"), "not both")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("subnet", "part"),
    [
        ('{"ffn": [64, 65], "heads": [4, 4]}', "ffn=65 of layer 1 is above the maximum"),
        ('{"ffn": [64], "heads": [4]}', "the subnet has 1 layers, and the model has 2"),
        ('{"ffn": [0, 0], "heads": [0, 0]}', "skips every layer"),
        ('{"ffn": [64, 64], "head": [4, 4]}', "unknown axis 'head'"),
        ("nowhere.json", "there is no subnet file nowhere.json"),
    ],
)
def test_subnets(universal_dir, tmp_path, subnet, part):
    refused(elastic("extract", universal_dir, "--subnet", subnet, "-o", tmp_path / "x"), part)
    refused(elastic("eval", universal_dir, "--subnet", subnet), part)


def test_input_shapes(universal_dir):
    refused(elastic("info", universal_dir, "--input-shape", "1x9"), "write 4 numbers such as 1x1x8x8")
    refused(elastic("info", universal_dir, "--input-shape", "1x1x8x8²"), "'1x1x8x8²' is not an input shape")
    refused(elastic("info", universal_dir, "--input-shape", "1x1x9x9"), "does not take the input shape")


@pytest.mark.parametrize("command", ["info", "eval", "search", "extract", "pareto"])
def test_checkpoints_that_are_not_whole(command, universal_copy, tmp_path):
    extra = {"search": ["--flops", "60%"], "extract": ["--flops", "60%"]}.get(command, [])
    if command in ("extract", "pareto"):
        extra = [*extra, "-o", tmp_path / "out"]

    def run():
        return elastic(command, universal_copy, *extra)

    weights, config, record = (universal_copy / n for n in ("model.safetensors", "config.json", "elastic.json"))
    original = {path: path.read_bytes() for path in (weights, config, record)}

    def restored():
        for path, content in original.items():
            path.write_bytes(content)

    weights.write_bytes(original[weights][:-100])
    refused(run(), "it was truncated or replaced")
    weights.unlink()
    refused(run(), "has no model.safetensors, which elastic.json lists")
    restored()
    config.unlink()
    refused(run(), "has no config.json")
    restored()
    config.write_text("{")
    refused(run(), "config.json cannot be read")
    restored()
    change(config, model_type="bert")
    refused(run(), "is of type 'bert', and elastic.json of 'vit'")
    restored()
    change(config, architectures=["pipeline"])
    refused(run(), "names no model class of transformers")
    restored()
    change(config, num_hidden_layers=3)
    refused(run(), "the weights in", "do not fit its config.json")
    restored()
    record.unlink()
    refused(run(), "has no elastic.json, so it is not an Elastic checkpoint")
    record.write_text("{")
    refused(run(), "is not valid JSON")
    restored()
    change(record, format_version=2)
    refused(run(), "has format version 2, and this Elastic reads up to 1; update Elastic")
    restored()
    change(record, surprise=1)
    refused(run(), "is not a record of Elastic: surprise")
    restored()
    change(record, files={"../model.safetensors": "0"})
    refused(run(), "which is outside of its folder")
    shutil.rmtree(universal_copy)
    refused(run(), "is not a folder")
    assert not (tmp_path / "out").exists()


def test_outputs_that_exist_are_left_alone(universal_dir, recipe_file, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    for arguments in (
        ["train", recipe_file],
        ["extract", universal_dir, "--flops", "60%"],
        ["pareto", universal_dir],
        ["export", universal_dir],
    ):
        refused(elastic(*arguments, "-o", taken), f"{taken} exists already, and nothing is overwritten")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "precious.txt"]


def test_outputs_that_cannot_be_written(universal_dir, tmp_path):
    """Whatever the system refuses is one sentence, with the path."""
    (tmp_path / "file").write_text("mine")
    subnet = ("--subnet", '{"ffn": [16, 16], "heads": [2, 2]}')
    inside = tmp_path / "file" / "out"
    refused(elastic("extract", universal_dir, *subnet, "-o", inside), f"{tmp_path / 'file'} is not a folder")
    refused(elastic("extract", universal_dir, *subnet, "-o", tmp_path / ("x" * 300)), "File name too long")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_are_no_text(universal_dir, tmp_path):
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    refused(elastic("extract", universal_dir, "--subnet", binary, "-o", tmp_path / "x"), "is not UTF-8 text")
    refused(elastic("plan", universal_dir, "--space", binary), "is not UTF-8 text")
    refused(elastic("train", binary, "-o", tmp_path / "x"), "is not valid YAML")


def test_json_has_no_numbers_that_json_lacks(capsys):
    print_json({"value": float("nan"), "several": [1.5, float("inf")], "pair": (1, None)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "value": None, "several": [1.5, None], "pair": [1, None]
    }  # fmt: skip


def test_folders_of_the_wrong_kind(universal_dir, tmp_path):
    refused(elastic("export", universal_dir, "-o", tmp_path / "b"), "is a universal model; cut a subnet first")
    refused(elastic("export", universal_dir, "--to", "onxx", "-o", tmp_path / "b"), "did you mean 'onnx'?")
    small = tmp_path / "small"
    assert elastic("extract", universal_dir, "--flops", "60%", "--candidates", "2", "-o", small).code == 0
    refused(elastic("eval", small), "is an extracted model; name the universal model that it was cut from")
    refused(elastic("verify", small), "manifest.json")
    refused(elastic("bench", tmp_path / "nowhere"))


def test_unknown_cost_and_split(universal_dir, tmp_path):
    refused(elastic("pareto", universal_dir, "-o", tmp_path / "x", "--cost", "flop"), "did you mean 'flops'?")
    refused(elastic("eval", universal_dir, "--split", "tset"), "has no 'tset' split; it has")


def test_no_traceback_in_a_real_process(universal_dir, tmp_path):
    result = elastic_process("extract", universal_dir, "--flops", "1k", "-o", tmp_path / "x")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: no subnet has flops of at most 1k; the smallest has")
    assert result.stderr.count("\n") == 1


def test_a_tampered_bundle_fails_the_check(universal_dir, tmp_path):
    small, bundle = tmp_path / "small", tmp_path / "bundle"
    elastic("extract", universal_dir, "--flops", "60%", "--candidates", "2", "-o", small)
    elastic("export", small, "-o", bundle)
    graph = bundle / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-8])
    result = elastic("verify", bundle)
    assert result.code == 1
    assert result.err.startswith("Error: ")
    assert "model.onnx" in result.err
