"""A family made for profiling, from the universal model to a search within a latency, on the real runtime."""

from __future__ import annotations

import json

import pytest

from elastic.cost import LatencyModel, LatencyTable
from elastic.export.runtime.__main__ import main
from elastic.pipeline import Universal
from elastic.record import read_record
from tests.cli.conftest import elastic


@pytest.fixture(params=[{"ffn": [0.5, 1.0]}, pytest.param(None, marks=pytest.mark.slow)], ids=["small", "whole"])
def universal(request, universal_copy):
    """A universal model with a small space, of which few subnets are traced, and as it was trained."""
    if request.param:
        record = json.loads((universal_copy / "elastic.json").read_text())
        (universal_copy / "elastic.json").write_text(json.dumps(record | {"space": request.param, "granularities": {}}))
    return universal_copy


def test_what_is_profiled_tells_the_whole_space(universal, tmp_path, capsys):
    bundle, table_file = tmp_path / "bundle", tmp_path / "table.json"
    made = elastic("export", universal, "--to", "family", "--for-profiling", "-o", bundle)
    assert made.code == 0, made.err
    assert "Next, on the device: cd bundle; python3 -m runtime profile -o table.json" in made.err
    members = json.loads((bundle / "manifest.json").read_text())["members"]
    assert [member["name"] for member in members if member["quality"]] == []
    assert members[0]["name"] == "largest"
    assert main(["profile", str(bundle), "-o", str(table_file), "--rounds", "3"]) == 0
    assert capsys.readouterr().out.count("median") == len(members)
    model = LatencyModel.fit(LatencyTable.read(table_file), read_record(universal).input_shapes)
    model.check_covers(Universal.open(universal).elastic.resolved)
    found = elastic(
        "search", universal, "--latency", "100%", "--table", table_file, "--candidates", 2, "--method", "heuristic"
    )
    assert found.code == 0, found.err
    assert f"from {len(members)} measured subnets; mean error on those left out of the fit: latency " in found.err
    assert "unknown" not in found.err


def test_subnets_are_chosen_or_named(universal_dir, tmp_path):
    done = elastic(
        "export", universal_dir, "--to", "family", "--for-profiling", "--flops", "50%", "-o", tmp_path / "out"
    )
    assert (done.code, "--for-profiling chooses the subnets; leave --subnet and --flops out" in done.err) == (2, True)
    done = elastic("export", universal_dir, "--for-profiling", "-o", tmp_path / "out")
    assert (done.code, "--for-profiling is for --to family or tensorrt of a universal" in done.err) == (2, True)
