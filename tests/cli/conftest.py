"""A tiny universal model trained by the command line once, and a way to run commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elastic.cli.app import app

ROOT = Path(__file__).parents[2]

RECIPE = """
name: tiny
task: image-classification
model:
  family: vit
  config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64, patch_size: 2}
data: {source: digits}
space: {ffn: [0.25, 0.5, 1.0], heads: [0.5, 1.0], layers: [1, 2]}
granularities: {S: {ffn: 0.25, heads: 0.5, layers: 1}, XL: {}}
training:
  sampler: {name: joint}
  arguments: {max_steps: 40, per_device_train_batch_size: 32, learning_rate: 3.0e-3, logging_steps: 10, save_steps: 20,
              eval_strategy: "no", use_cpu: true, dataloader_pin_memory: false}
"""


class Result:
    def __init__(self, result):
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception

    @property
    def json(self):
        return json.loads(self.out)


def elastic(*arguments: object) -> Result:
    """Run a command in this process."""
    return Result(CliRunner().invoke(app, [str(argument) for argument in arguments]))


def elastic_process(*arguments: object, **kwargs) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "elastic.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory, recipe_file):
    folder = tmp_path_factory.mktemp("trained") / "universal"
    result = elastic("train", recipe_file, "-o", folder)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def universal_dir(_trained):
    """A trained universal model, not to be changed."""
    return _trained


@pytest.fixture
def universal_copy(_trained, tmp_path):
    """A trained universal model of one's own."""
    return shutil.copytree(_trained, tmp_path / "copy")
