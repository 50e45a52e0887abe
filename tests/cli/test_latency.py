"""Budgets of latency on the command line."""

from __future__ import annotations

import csv
import json

import pytest

from elastic.nested import get_elastic
from elastic.pipeline import Universal
from elastic.record import read_record
from tests.cli.conftest import elastic
from tests.latency import one_axis_each, true_ms, write_table


@pytest.fixture
def table(universal_dir, tmp_path):
    space = get_elastic(Universal.open(universal_dir).model).resolved
    shapes = read_record(universal_dir).input_shapes
    return write_table(tmp_path / "t.json", one_axis_each(space), shapes)


def test_search_and_extract_within_a_latency(universal_dir, table, tmp_path):
    limits = "--latency", "5.5ms", "--energy", "90%", "--table", table, "--candidates", 4
    result = elastic("search", universal_dir, *limits, "--method", "heuristic")
    assert result.code == 0, result.err
    assert "latency <= 5.5 ms, energy <= " in result.out
    assert "predicted latency" in result.out
    assert "Predicted for Toaster 3000 (1 thread, fp32) from 5 measured subnets; mean error" in result.err
    found = elastic("search", universal_dir, *limits, "--method", "heuristic", "--json").json
    assert all(point["cost"]["latency_ms"] <= 5.5 for point in found["measured"])
    assert found["table"]["device"] == "Toaster 3000"
    cut = elastic("extract", universal_dir, *limits, "--method", "heuristic", "-o", tmp_path / "small", "--json")
    assert cut.code == 0, cut.err
    assert cut.json["cost"]["device"] == "Toaster 3000 (1 thread, fp32)"
    assert cut.json["cost"]["latency_ms"] <= 5.5


def test_a_front_over_latency(universal_dir, table, tmp_path):
    result = elastic(
        "pareto", universal_dir, "-o", tmp_path / "r", "--table", table, "--latency", "80%", "--candidates", 4
    )
    assert result.code == 0, result.err
    with (tmp_path / "r" / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    largest = true_ms(get_elastic(Universal.open(universal_dir).model).resolved.largest)
    assert rows
    assert all(float(row["latency_ms"]) <= 0.8 * largest * 1.001 for row in rows)
    assert "predicted milliseconds for" in (tmp_path / "r" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["search", "--latency", "8ms"],
            "--latency 8ms needs a latency table, which `elastic profile` measures on the",
        ),
        (["pareto", "-o", "{out}", "--energy", "8mJ"], "--energy 8mJ needs a latency table"),
        (["search", "--latency", "8", "--table", "{table}"], "write a positive number with its unit: 8ms"),
        (
            ["search", "--latency", "1us", "--table", "{table}"],
            "no subnet has latency of at most 0.001 ms; the smallest",
        ),
        (["search", "--latency", "8ms", "--table", "none.json"], "there is no latency table none.json"),
        (
            ["search", "--latency", "8ms", "--table", "{table}", "--input-shape", "2x1x8x8"],
            "not measured at pixel_values",
        ),
        (["pareto", "-o", "{out}", "--cost", "latency_ms"], "latency_ms comes from a latency table"),
    ],
)
def test_what_cannot_be_predicted_is_refused(universal_dir, table, tmp_path, arguments, message):
    command, *rest = (argument.format(table=table, out=tmp_path / "out") for argument in arguments)
    result = elastic(command, universal_dir, *rest)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_tables_that_tell_too_little_name_what_to_measure(universal_dir, table):
    data = json.loads(table.read_text())
    data["measured"] = data["measured"][:1]
    table.write_text(json.dumps(data))
    result = elastic("search", universal_dir, "--latency", "8ms", "--table", table)
    assert result.code == 2
    assert (
        "do not tell what 2/2 layers, ffn 32, heads 4 needs; profile a bundle of that subnet too, or one from"
        in result.err
    )
