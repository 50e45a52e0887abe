"""Subnet and precision within one latency budget, from latency tables to a bundle."""

from __future__ import annotations

import json

import pytest

from elastic.nested import get_elastic
from elastic.pipeline import Universal
from elastic.record import read_record
from tests.cli.conftest import elastic
from tests.latency import one_axis_each, true_ms, write_table


def scaled(path, factor):
    """Make a table of a device that takes so many times as long."""
    data = json.loads(path.read_text())
    for row in data["measured"]:
        row |= {name: factor * row[name] for name in ("median_ms", "p10_ms", "p90_ms")}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def space_and_shapes(_trained):
    return get_elastic(Universal.open(_trained).model).resolved, read_record(_trained).input_shapes


@pytest.fixture
def tables(space_and_shapes, tmp_path):
    """In int8, every subnet takes half as long."""
    space, shapes = space_and_shapes
    subnets = one_axis_each(space)
    fp32 = write_table(tmp_path / "fp32.json", subnets, shapes)
    return fp32, scaled(write_table(tmp_path / "int8.json", subnets, shapes, precision="int8"), 0.5)


def test_from_tables_to_a_bundle(universal_copy, tables, space_and_shapes, tmp_path):
    fp32, int8 = tables
    limit = 1.02 * true_ms(space_and_shapes[0].smallest)  # In float32 the smallest fits, and no other.
    options = "--latency", f"{limit}ms", "--table", fp32, "--table", int8, "--candidates", 6, "--lowered", 3
    options += "--method", "heuristic"
    found = elastic("search", universal_copy, *options, "--json")
    assert found.code == 0, found.err
    best = found.json["best"]
    assert best["precision"] == "int8"
    assert best["cost"]["device"] == "Toaster 3000 (1 thread, int8)"
    assert all(point["cost"]["latency_ms"] <= limit for point in found.json["measured"])
    by_precision = found.json["by_precision"]
    assert by_precision["fp32"]["best"]["quality"]["value"] < best["quality"]["value"]
    assert by_precision["fp32"]["best"]["cost"]["device"] == "Toaster 3000 (1 thread, fp32)"
    assert 2 <= by_precision["int8"]["measured"] == found.json["num_lowered"] <= 3
    assert len(by_precision["int8"]["best"]["quality"]["interval"]) == 2

    said = elastic("extract", universal_copy, *options, "-o", tmp_path / "small")
    assert said.code == 0, said.err
    assert "int8 loses" in said.err
    assert f"Next: elastic export {tmp_path}/small --to onnx --precision int8 --recipe {tmp_path}/small" in said.err
    record = read_record(tmp_path / "small")
    assert record.subnet == best["subnet"]
    assert record.precision == {"to": "onnx", "precision": "int8", "quality": best["quality"]}
    assert record.quality["value"] != 0
    assert "chosen to be exported in int8" in (tmp_path / "small" / "README.md").read_text()

    result = elastic("export", tmp_path / "small", "--recipe", tmp_path / "small", "-o", tmp_path / "bundle")
    assert result.code == 0, result.err
    assert "In int8, for which this subnet was chosen" in result.err
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["parity"]["precision"] == "int8"
    assert manifest["subnet"] == best["subnet"]
    # The bundle is the graph that the search measured.
    assert manifest["quality"]["quantization"]["quantized"] == best["quality"]

    table = tmp_path / "mine.json"
    assert elastic("export", tmp_path / "small", "--precision", "fp32", "-o", tmp_path / "float").code == 0
    profiled = elastic("profile", tmp_path / "bundle", tmp_path / "float", "-o", table, "--rounds", 2, "--json")
    assert profiled.code == 0, profiled.err
    for name in ("int8", "fp32"):
        written = json.loads((tmp_path / f"mine-{name}.json").read_text())
        assert written["precision"] == name
        assert [row["subnet"] for row in written["measured"]] == [best["subnet"]]
    assert f"--table {tmp_path}/mine-int8.json --table {tmp_path}/mine-fp32.json" in profiled.err


def test_what_was_measured_in_a_precision_is_remembered(universal_copy, tables, monkeypatch):
    options = "--latency", "3ms", "--table", tables[1], "--candidates", 2, "--lowered", 1, "--method", "uniform"
    first = elastic("search", universal_copy, *options)
    assert first.code == 0, first.err
    assert "Best of each precision with latency <= 3 ms" in first.out
    assert "Predicted for Toaster 3000 (1 thread, int8) from 5 measured subnets; mean error" in first.err
    assert "1 exported and measured in another precision" in first.err

    def refuse(*args, **kwargs):
        raise AssertionError("exported again")

    monkeypatch.setattr("elastic.export.lowered.export_onnx", refuse)
    again = elastic("search", universal_copy, *options)
    assert again.out == first.out
    measured = json.loads((universal_copy / "measured.json").read_text())["measured"]
    assert min(map(len, measured.values())) == 1


def test_static_int8_is_for_the_device_of_the_table(universal_dir, tables, tmp_path):
    data = json.loads(tables[1].read_text()) | {"precision": "int8-static"}
    data["device"]["machine"] = "aarch64"
    tables[1].write_text(json.dumps(data))
    result = elastic("extract", universal_dir, "--latency", "3ms", "--table", tables[1], "--candidates", 2,
                     "--lowered", 1, "--method", "uniform", "-o", tmp_path / "small")  # fmt: skip
    assert result.code == 0, result.err
    assert "--to onnx --precision int8-static --target cpu-arm --recipe" in result.err
    assert read_record(tmp_path / "small").precision["target"] == "cpu-arm"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"precision": "fp32"}, ["--latency", "8ms"], "are both of fp32; give one for each precision."),
        ({"precision": None}, ["--latency", "8ms"], "does not say its precision; profile the bundles again"),
        ({"precision": ""}, ["--latency", "8ms"], "does not say its precision"),
        ({"precision": "int7"}, ["--latency", "8ms"], "is of the precision 'int7'; did you mean 'int8'?"),
        ({"threads": 4}, ["--latency", "8ms"], "differ in the number of threads (1 and 4)"),
        ({"model_type": "bert"}, ["--latency", "8ms"], "differ in the model type (vit and bert)"),
        ({"device": {"name": "Kettle"}}, ["--latency", "8ms"], "differ in the device (Toaster 3000 and Kettle)"),
        ({}, ["--flops", "50%"], "2 latency tables are given, and no budget depends on the precision"),
        ({}, ["--latency", "8ms", "--memory", "1MiB"], "--memory 1MiB is of weights and activations in float32"),
        ({}, ["--latency", "1us"], "no subnet has latency of at most 0.001 ms"),
    ],
)
def test_contradictions_are_refused(universal_dir, tables, changes, options, message):
    fp32, int8 = tables
    data = json.loads(int8.read_text()) | changes
    int8.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
    result = elastic("search", universal_dir, *options, "--table", fp32, "--table", int8)
    assert result.code == 2, result.out
    assert message in result.err.splitlines()[-1]


def test_one_subnet_has_one_table(universal_dir, tables, tmp_path):
    result = elastic("extract", universal_dir, "--subnet", "{}", "--table", tables[0], "--table", tables[1],
                     "-o", tmp_path / "out")  # fmt: skip
    assert result.code == 2
    assert "--subnet is one subnet, so one --table says its latency" in result.err
