"""A run that is killed and resumed is the run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from tests.cli.conftest import elastic

SETTINGS = [
    "--set", "training.arguments.max_steps=60",
    "--set", "training.arguments.save_steps=10",
    "--set", "training.arguments.logging_steps=1",
    "--set", "training.sampler={name: sandwich, num_random: 1}",
    "--set", "model.config.hidden_dropout_prob=0.1",
]  # fmt: skip


def losses(folder):
    log = json.loads((folder / "elastic.json").read_text())["training"]["log"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def weights(folder):
    return json.loads((folder / "elastic.json").read_text())["files"]


def test_killed_and_resumed_gives_the_same_losses(recipe_file, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    # One thread everywhere: how many of them add up a sum decides its last digits.
    assert elastic("train", recipe_file, "-o", straight, *SETTINGS).code == 0
    command = [sys.executable, "-m", "elastic.cli", "train", str(recipe_file), "-o", str(killed), *SETTINGS]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    )
    for line in process.stderr:
        if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= 25:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    work = tmp_path / "killed.training"
    assert not killed.exists()
    assert (work / "checkpoint-20").is_dir()

    refused = elastic("train", recipe_file, "-o", killed, *SETTINGS)
    assert refused.code == 2
    assert "an unfinished run lies at" in refused.err
    other = elastic("train", recipe_file, "-o", killed, *SETTINGS, "--set", "seed=1", "--resume")
    assert other.code == 2
    assert "was started with another recipe" in other.err

    # A checkpoint that the kill left half-written must not be the one to resume from.
    half = work / "checkpoint-50"
    half.mkdir(exist_ok=True)
    (half / "trainer_state.json").write_text('{"epoch": 0.')

    resumed = elastic("train", recipe_file, "-o", killed, *SETTINGS, "--resume")
    assert resumed.code == 0, resumed.err
    assert losses(killed) == losses(straight)
    assert len(losses(killed)) == 60
    assert weights(killed) == weights(straight)
    assert not work.exists()


def test_there_is_nothing_to_resume(recipe_file, tmp_path):
    result = elastic("train", recipe_file, "-o", tmp_path / "out", "--resume")
    assert result.code == 2
    assert "there is no unfinished run at" in result.err
    assert list(tmp_path.iterdir()) == []
