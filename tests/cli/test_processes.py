"""Several processes train one universal model: launched as any Trainer is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import elastic as library
from elastic.nested import get_elastic


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["{name: uniform}", "{name: sandwich, num_random: 1}"])
def test_two_processes_agree_on_the_subnets(recipe_file, tmp_path, sampler):
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "elastic.cli",
        "train", str(recipe_file), "-o", str(out), "--set", f"training.sampler={sampler}",
        "--set", "training.arguments.per_device_train_batch_size=16",
        "--set", "training.arguments.ddp_backend=gloo",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    training = json.loads((out / "elastic.json").read_text())["training"]
    assert training["epochs"] == pytest.approx(40 * 2 * 16 / 1079, abs=0.1)
    losses = [entry["loss"] for entry in training["log"] if "loss" in entry]
    assert losses[-1] < losses[0]
    assert get_elastic(library.load(out)).resolved.num_subnets == 42
