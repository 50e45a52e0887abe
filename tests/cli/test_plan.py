"""`elastic plan`: from a configuration alone."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import elastic
from tests.tiny import tiny_llama

SPACE = "{ffn: [0.25, 0.5, 1.0], heads: [0.5, 1.0], layers: [1, 2, 3]}"


@pytest.fixture
def config_dir(tmp_path):
    folder = tmp_path / "llama"
    config = tiny_llama().config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def test_a_folder_and_a_file_say_the_same(config_dir):
    data = elastic("plan", config_dir, "--space", SPACE, "--json").json
    assert data == elastic("plan", config_dir / "config.json", "--space", SPACE, "--json").json
    assert data["family"] == "llama" and data["num_uniform"] == len(data["subnets"]) == 18
    assert data["num_subnets"] == 6 + 6**2 + 6**3
    assert data["subnets"][-1]["cost"]["params"] == tiny_llama().num_parameters()
    assert data["subnets"][-1]["weight_bytes_as"]["float32"] == 4 * tiny_llama().num_parameters()
    text = elastic("plan", config_dir, "--space", SPACE)
    assert f"{data['num_subnets']} subnets of llama for input_ids 1x64, 18 of them uniform" in text.out
    assert not (config_dir / "model.safetensors").exists()


def test_without_a_space_with_a_budget_and_another_shape(config_dir):
    data = elastic("plan", config_dir, "--json").json
    assert [point["subnet"]["ffn"][0] for point in data["subnets"]] == [16, 32, 48, 64]
    within = elastic("plan", config_dir, "--params", "80%", "--input-shape", "2x8", "--json").json
    assert 0 < len(within["subnets"]) < 4
    assert within["subnets"][0]["cost"]["input_shapes"] == {"input_ids": [2, 8]}


def test_one_subnet_and_a_universal_model(config_dir, universal_dir):
    subnet = '{"ffn": [64, 0, 16], "heads": [4, 2, 0]}'
    (point,) = elastic("plan", config_dir, "--subnet", subnet, "--json").json["subnets"]
    assert point["subnet"] == json.loads(subnet)
    info = elastic("info", universal_dir, "--json").json
    plan = elastic("plan", universal_dir, "--json").json
    assert plan["num_subnets"] == info["num_subnets"]
    assert plan["subnets"][-1]["cost"] == info["subnets"]["largest"]["cost"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--space", "{fnn: [0.5]}"], "unknown axis 'fnn'"),
        (["--space", "{ffn: [0.3]}"], "not a whole number"),
        (["--params", "10"], "no subnet has params of at most 10; the smallest has"),
        (["--subnet", "{}", "--params", "10"], "give either --subnet, or a space and a budget"),
        (["--input-shape", "8"], "is not an input shape"),
    ],
)
def test_bad_options(config_dir, options, part):
    result = elastic("plan", config_dir, *options)
    assert result.code == 2 and part in result.err and result.err.count("\n") == 1


def test_bad_configurations(tmp_path):
    (tmp_path / "config.json").write_text("{")
    for name, part in ((tmp_path, "cannot be read"), (tmp_path / "none", "there is no"), ("x.json", "there is no")):
        result = elastic("plan", name)
        assert result.code == 2 and part in result.err
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    result = elastic("plan", tmp_path)
    assert result.code == 2 and "mixtral" in result.err
