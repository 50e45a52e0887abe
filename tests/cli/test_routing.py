"""Routers from a recipe to an extracted subnet, by the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification

import elastic as library
from elastic.cost import format_quantity
from elastic.nested import get_elastic, get_routers, routed
from elastic.pipeline import Universal, measure_routed
from tests.cli.conftest import elastic, elastic_process

RECIPE = """
name: tiny_routers
task: image-classification
model: {{pretrained: {pretrained}}}
data: {{source: digits}}
granularities: {{XL: {{}}}}
routers: {{what: attention, layers: [0, 1], capacity: 0.5, mode: {mode}}}
training:
  sampler: {{name: joint}}
  arguments: {{max_steps: 40, per_device_train_batch_size: 32, learning_rate: 1.0e-2, logging_steps: 10, save_steps: 10,
              eval_strategy: "no", use_cpu: true, dataloader_pin_memory: false}}
"""


def write_recipe(folder, pretrained, mode="tune"):
    path = folder / "routers.yaml"
    path.write_text(RECIPE.format(pretrained=pretrained, mode=mode))
    return path


@pytest.fixture(scope="module")
def tuned_dir(tmp_path_factory, _trained):
    folder = tmp_path_factory.mktemp("tuned")
    result = elastic("train", write_recipe(folder, _trained), "-o", folder / "routed")
    assert result.code == 0, result.err
    return folder / "routed"


def test_a_routed_checkpoint_is_a_stock_checkpoint(tuned_dir, universal_dir):
    record = json.loads((tuned_dir / "elastic.json").read_text())
    assert record["routers"] == {"what": "attention", "layers": [0, 1], "threshold": 0.5, "initial_bias": 1.0}
    assert set(record["files"]) == {"model.safetensors", "routers.safetensors"}
    before = json.loads((universal_dir / "elastic.json").read_text())["files"]
    assert record["files"]["model.safetensors"] == before["model.safetensors"]
    assert any("capacity" in entry and "gate_entropy" in entry for entry in record["training"]["log"])
    model = library.load(tuned_dir)
    stock = AutoModelForImageClassification.from_pretrained(tuned_dir).eval()
    pixels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(stock(pixels).logits, model(pixels).logits)
    assert any(float(router.weight.detach().abs().sum()) > 0 for router in get_routers(model).values())


def test_eval_routed_says_capacity_and_expected_flops(tuned_dir):
    result = elastic("eval", tuned_dir, "--routed", "--json")
    assert result.code == 0, result.err
    (point,) = result.json
    universal = Universal.open(tuned_dir)
    universal.model.set_attn_implementation("eager")  # The counter does not see into fused kernels of the CPU.
    data = universal.task.datasets["validation"]
    flops, correct, on = 0, 0, 0
    for example in data:
        with torch.no_grad(), routed(universal.model) as trace, FlopCounterMode(display=False) as counter:
            logits = universal.model(example["pixel_values"][None]).logits
        flops += counter.get_total_flops()
        correct += int(logits.argmax() == example["labels"])
        on += trace.capacity
    assert point["expected_flops"] == pytest.approx(flops / len(data), abs=1)
    assert point["expected_flops"] < point["cost"]["flops"]
    assert point["capacity"] == pytest.approx(on / len(data))
    assert point["quality"]["value"] == pytest.approx(100 * correct / len(data), abs=0.6)
    everything = elastic("eval", tuned_dir, "--routed", "--threshold", "1e-6", "--json").json[0]
    assert everything["capacity"] == 1.0
    assert everything["expected_flops"] == everything["cost"]["flops"]
    assert everything["quality"] == elastic("eval", tuned_dir, "--json").json[0]["quality"]
    halved = elastic("eval", tuned_dir, "--routed", "--capacity", "75%", "--json").json[0]
    assert halved["capacity"] == pytest.approx(0.75, abs=0.1)
    table = elastic("eval", tuned_dir, "--routed")
    assert "capacity" in table.out and "expected FLOPs" in table.out


def test_the_card_pairs_quality_with_the_cost_of_what_was_measured(tuned_dir):
    (point,) = elastic("eval", tuned_dir, "--routed", "--json").json
    (row,) = [line for line in (tuned_dir / "README.md").read_text().splitlines() if line.startswith("| XL")]
    name, flops, *_, quality = (cell.strip() for cell in row.strip("|").split("|"))
    assert name == f"XL, routed ({point['capacity']:.0%} of gates on)"
    assert flops == format_quantity(point["expected_flops"]) != format_quantity(point["cost"]["flops"])
    assert quality == f"{point['quality']['value']:.4g}"


def test_frozen_routers_are_extracted(tuned_dir, tmp_path):
    result = elastic("extract", tuned_dir, "--frozen-routers", "--capacity", "50%", "-o", tmp_path / "half", "--json")
    assert result.code == 0, result.err
    heads = result.json["subnet"]["heads"]
    assert sorted(heads) == [0, 4] and result.json["subnet"]["ffn"] == [64, 64]
    usage = measure_routed(Universal.open(tuned_dir), get_elastic(library.load(tuned_dir)).resolved.largest).usage
    assert {key.layer for key, share in usage.items() if share == max(usage.values())} >= {heads.index(4)}
    small = library.load(tmp_path / "half")
    assert not hasattr(small, "elastic_routers")
    by_recipe = elastic("extract", tuned_dir, "--frozen-routers", "-o", tmp_path / "as_trained", "--json")
    assert by_recipe.json["subnet"] == result.json["subnet"]


def test_training_on_keeps_the_routers(tuned_dir, tmp_path):
    """A recipe without routers leaves them as they are; one with the same goes on with them."""
    before = {name: tensor.clone() for name, tensor in get_routers(library.load(tuned_dir)).state_dict().items()}
    recipe = write_recipe(tmp_path, tuned_dir)
    plain = elastic("train", recipe, "-o", tmp_path / "plain", "--set", "routers=null",
                    "--set", "space={ffn: [0.5, 1.0]}",
                    "--set", "training.arguments.max_steps=2")  # fmt: skip
    assert plain.code == 0, plain.err
    for name, tensor in get_routers(library.load(tmp_path / "plain")).state_dict().items():
        assert torch.equal(tensor, before[name])
    on = elastic("train", recipe, "-o", tmp_path / "on", "--set", "training.arguments.learning_rate=1.0e-6",
                 "--set", "training.arguments.max_steps=1")  # fmt: skip
    assert on.code == 0, on.exception
    for name, tensor in get_routers(library.load(tmp_path / "on")).state_dict().items():
        assert torch.allclose(tensor, before[name], atol=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(universal_dir, tmp_path):
    recipe = write_recipe(tmp_path, universal_dir)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = ["--set", "training.arguments.logging_steps=1"]
    assert elastic_process("train", recipe, "-o", straight, *settings).returncode == 0
    command = [sys.executable, "-m", "elastic.cli", "train", str(recipe), "-o", str(killed), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= 15:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not killed.exists()
    resumed = elastic_process("train", recipe, "-o", killed, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    records = [json.loads((folder / "elastic.json").read_text()) for folder in (straight, killed)]
    assert records[0]["files"] == records[1]["files"]
    logs = [
        [{k: v for k, v in e.items() if k in ("step", "loss") or "capacity" in k} for e in r["training"]["log"]]
        for r in records
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "{}", "--threshold", "0.3"], "--threshold and --capacity are for routers; add --routed"),
        (["eval", "{}", "--routed", "--threshold", "0.3", "--capacity", "50%"], "not both"),
        (["eval", "{}", "--routed", "--threshold", "2"], "threshold of routers is 2.0"),
        (["eval", "{}", "--routed", "--capacity", "much"], "'much' is not a capacity; write a share such as 50%"),
        (["extract", "{}", "-o", "out", "--frozen-routers", "--flops", "50%"], "takes --capacity alone"),
        (["extract", "{}", "-o", "out", "--capacity", "50%", "--flops", "50%"], "--capacity is for routers"),
        (["extract", "{}", "-o", "out", "--frozen-routers", "--capacity", "0%"], None),
    ],
)
def test_bad_requests(tuned_dir, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = elastic(*(argument.format(tuned_dir) for argument in arguments))
    if message is None:  # The MLPs stay: nothing is wrong with that.
        assert result.code == 0
        return
    assert result.code == 2
    assert message in result.err
    assert not Path("out").exists()


def test_models_and_recipes_without_routers(universal_dir, recipe_file, tmp_path):
    assert "has no routers" in elastic("eval", universal_dir, "--routed").err
    assert "names no capacity" in elastic("extract", universal_dir, "--frozen-routers", "-o", tmp_path / "out").err
    scratch = elastic("train", recipe_file, "-o", tmp_path / "out", "--set", "routers={capacity: 0.5}")
    assert scratch.code == 2 and "needs model.pretrained; or choose mode: joint" in scratch.err
    unknown = elastic("train", recipe_file, "-o", tmp_path / "out", "--set", "routers={capacty: 0.5}")
    assert unknown.code == 2 and "did you mean 'capacity'?" in unknown.err
    missing = elastic(
        "train", recipe_file, "-o", tmp_path / "out", "--set", "routers={capacity: 0.5, layers: [7], mode: joint}"
    )
    assert missing.code == 2 and "layer 7 cannot have a router" in missing.err
    assert list(tmp_path.iterdir()) == []


def test_info_says_that_there_are_routers(tuned_dir):
    assert "Routers: attention of layers 0, 1" in elastic("info", tuned_dir).err
    assert elastic("info", tuned_dir, "--json").json["routers"]["what"] == "attention"


@pytest.mark.slow
def test_two_processes_train_the_same_routers(universal_dir, tmp_path):
    recipe = write_recipe(tmp_path, universal_dir, "joint")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "elastic.cli",
        "train", str(recipe), "-o", str(tmp_path / "out"), "--set", "training.arguments.ddp_backend=gloo",
        "--set", "training.arguments.ddp_find_unused_parameters=false",
        "--set", "training.arguments.per_device_eval_batch_size=64",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    log = json.loads((tmp_path / "out" / "elastic.json").read_text())["training"]["log"]
    assert all(0 <= entry["capacity"] <= 1 for entry in log if "loss" in entry)
    universal = Universal.open(tmp_path / "out")
    measured = measure_routed(universal, universal.elastic.resolved.largest)
    (evaluated,) = [entry for entry in log if "eval_capacity" in entry]
    for key, share in measured.usage.items():
        # The last batch is filled up with a few examples that are counted twice.
        assert evaluated[f"eval_capacity_{key}"] == pytest.approx(share, abs=0.01)
    assert any(
        float(router.weight.detach().abs().sum()) > 0 for router in get_routers(library.load(tmp_path / "out")).values()
    )


def test_a_recipe_names_the_gradient(tuned_dir, universal_dir, tmp_path):
    recipe = write_recipe(tmp_path, universal_dir)
    hashes = {}
    for gradient in ("interpolated", "straight_through"):
        result = elastic("train", recipe, "-o", tmp_path / gradient, "--set", f"routers.gradient={gradient}")
        assert result.code == 0, result.err
        hashes[gradient] = json.loads((tmp_path / gradient / "elastic.json").read_text())["files"][
            "routers.safetensors"
        ]
    assert (
        hashes["interpolated"] == json.loads((tuned_dir / "elastic.json").read_text())["files"]["routers.safetensors"]
    )
    assert hashes["interpolated"] != hashes["straight_through"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["routers.weight=0"], "compute 100.0% of what they decide about, and 50.0% was asked for"),
        (["routers.weight=0", "routers.capacity=[0.96, 1.0]"], None),
        (["routers.initial_bias=-9", "routers.penalty=above"], None),
    ],
)
def test_a_capacity_that_was_missed_is_said(universal_dir, tmp_path, settings, said):
    recipe = write_recipe(tmp_path, universal_dir)
    changes = [part for one in ["training.arguments.max_steps=1", *settings] for part in ("--set", one)]
    result = elastic("train", recipe, "-o", tmp_path / "out", *changes)
    assert result.code == 0, result.err
    assert said in result.err + result.out if said else "was asked for" not in result.err + result.out


def test_a_damaged_router_file_is_refused(tuned_dir, tmp_path):
    import shutil

    copied = shutil.copytree(tuned_dir, tmp_path / "copied")
    (copied / "routers.safetensors").unlink()
    result = elastic("info", copied)
    assert result.code == 2 and "has no routers.safetensors" in result.err
