from __future__ import annotations

import json

import numpy as np

from tests.cli.conftest import elastic


def test_granularities_become_one_graph_that_runs_those_it_holds(universal_dir, tmp_path):
    bundle = tmp_path / "bundle"
    result = elastic("export", universal_dir, "--to", "elastic-onnx", "--unmeasured", "-o", bundle)
    assert result.code == 0, result.err
    assert "XL: ffn_blocks [3, 3]" in result.out
    assert "'S' is left out: an elastic graph has 4 heads in every layer" in result.err
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [member["name"] for member in manifest["members"]] == ["XL"]
    assert elastic("verify", bundle, "--json").json["subnets"].keys() == {"XL"}
    np.save(tmp_path / "in.npy", np.zeros((2, 1, 8, 8), np.float32))
    files = "--input", tmp_path / "in.npy", "-o", tmp_path / "out.npz"
    assert elastic("run", bundle, *files, "--subnet", "XL", "--json").json["subnet"] == "XL"


def test_routers_are_needed_for_a_routed_graph(universal_dir, tmp_path):
    result = elastic("export", universal_dir, "--to", "elastic-onnx", "--routed", "-o", tmp_path / "no")
    assert result.code in (1, 2) and "no routers" in result.err
    assert not (tmp_path / "no").exists()
