"""A bundle in an environment that has NumPy and ONNX Runtime, and nothing else: as on a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "==1.23.2"], ids=["newest", "JetPack 6"])
def test_verify_run_bench_and_profile_on_a_bare_device(bundle_copy, tmp_path, version):
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device" / "bin" / "python"
    installed = call(python, "-m", "pip", "install", "--quiet", "numpy", f"onnxruntime{version}")
    if installed.returncode and version:
        pytest.skip(f"onnxruntime{version} has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}")
    assert installed.returncode == 0, installed.stderr
    assert call(python, "-c", "import torch", cwd=tmp_path).returncode == 1
    assert call(python, "-c", "import elastic", cwd=tmp_path).returncode == 1
    for kind in ("vit", "llama"):
        bundle = bundle_copy(kind)
        verified = call(python, "-m", "runtime", "verify", "--json", cwd=bundle)
        assert verified.returncode == 0, verified.stderr
        assert json.loads(verified.stdout)["max_abs_diff"] < 1e-4
        assert call(python, "-m", "runtime", "bench", "--rounds", "3", cwd=bundle).returncode == 0
        table = tmp_path / f"{kind}.json"
        sizes = ["--sequence", "8"] if kind == "llama" else []
        done = call(python, "-m", "runtime", "profile", *sizes, "--rounds", "3", "-o", str(table), cwd=bundle)
        assert done.returncode == 0, done.stderr
        runtime = json.loads(table.read_text())["device"]["runtime"]
        assert runtime.startswith(f"onnxruntime {version.removeprefix('==')}")
    np.save(tmp_path / "in.npy", np.zeros((2, 1, 8, 8), dtype=np.float32))
    vit = tmp_path / "vit"
    done = call(python, "-m", "runtime", "run", "--input", "../in.npy", "-o", "../out.npz", cwd=vit)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npz")["logits"].shape == (2, 5)
    damaged = bytearray((vit / "model.onnx").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (vit / "model.onnx").write_bytes(damaged)
    done = call(python, "-m", "runtime", "run", "--input", "../in.npy", "-o", "../other.npz", cwd=vit)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "other.npz").exists()


def call(python: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python without this checkout on its path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
