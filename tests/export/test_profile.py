"""What a device measures is what a workstation reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from elastic import extract, make_elastic
from elastic.cost import LatencyTable
from elastic.errors import CheckpointError
from elastic.export import export_onnx, profile_bundles
from elastic.export.runtime import profile as device
from elastic.export.runtime.__main__ import main
from elastic.export.runtime.errors import BundleError
from elastic.export.runtime.manifest import Member
from elastic.nested import get_elastic
from tests.tiny import SPACE, tiny_bert


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subnets")
    universal = make_elastic(tiny_bert(), SPACE)
    space = get_elastic(universal).resolved
    found = []
    for name, subnet in (("large", space.largest), ("small", space.smallest)):
        export_onnx(extract(universal, subnet), folder / name, subnet=subnet.to_dict())
        found.append((folder / name, subnet))
    return found


def test_a_table_holds_every_subnet_at_every_size(bundles, tmp_path):
    folders, subnets = zip(*bundles, strict=True)
    report = profile_bundles(folders, tmp_path / "t.json", batches=[1, 2], sequences=[8, 16], rounds=5, warmup=1)
    table = LatencyTable.read(tmp_path / "t.json")
    assert [row.name for row in table.measured] == ["large", "small"] * 4
    assert [row.subnet for row in table.measured] == list(subnets) * 4
    assert {tuple(row.sizes.items()) for row in table.measured} == {
        (("batch", batch), ("sequence", sequence)) for batch in (1, 2) for sequence in (8, 16)
    }
    assert table.measured[0].inputs["input_ids"] == (1, 8)
    assert all(0 < row.p10_ms <= row.median_ms <= row.p90_ms for row in table.measured)
    assert (table.threads, table.rounds, table.precision, table.model_type) == (1, 5, "fp32", "bert")
    assert table.device.name == report.table.device["name"]
    assert table.device.runtime.startswith("onnxruntime 1.")
    assert len(table.at({"input_ids": (2, 16)})) == 2


def test_energy_where_power_can_be_read(bundles, tmp_path, monkeypatch):
    """A device that always takes 6 W."""
    monkeypatch.setattr(device, "ENERGY_S", 0.05)
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200"}
    monitor = tmp_path / "sys/class/hwmon/hwmon3"
    monitor.mkdir(parents=True)
    for name, text in files.items():
        (monitor / name).write_text(text)
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal")
    (zone / "temp").write_text("50000")
    report = device.profile([bundles[0][0]], tmp_path / "t.json", sequences=[8], rounds=3, root=tmp_path)
    assert report.table.power == {"rails": ["VDD_IN"], "idle_w": pytest.approx(6.0)}
    assert report.table.temperature_c == {"cpu-thermal": [50.0, 50.0]}
    energy = report.table.measured[0].energy_mj
    assert energy > 6.0 * 0.2 * report.table.measured[0].p10_ms
    assert LatencyTable.read(tmp_path / "t.json").measured[0].energy_mj == energy


def test_the_commands_write_the_same_kind_of_table(bundles, tmp_path, capsys):
    from tests.cli.conftest import elastic

    folders = [folder for folder, _ in bundles]
    sizes = ["--batch", "2", "--sequence", "8", "--sequence", "12", "--rounds", "2"]
    result = elastic(
        "profile", *folders, "-o", tmp_path / "a.json", *sizes, "--no-spinning", "--backend", "onnxruntime"
    )
    assert result.code == 0, result.err
    assert "large (batch 2, sequence 8): median" in result.out
    assert main(["profile", *map(str, folders), "-o", str(tmp_path / "b.json"), *sizes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"]["format_version"] == 1
    one, other = (LatencyTable.read(tmp_path / name) for name in ("a.json", "b.json"))
    assert [(row.name, row.sizes, row.subnet) for row in one.measured] == [
        (row.name, row.sizes, row.subnet) for row in other.measured
    ]
    again = elastic("profile", *folders, "-o", tmp_path / "a.json")
    assert again.code == 2
    assert "is there already" in again.err
    engines = elastic("profile", *folders, "-o", tmp_path / "c.json", "--backend", "tensorrt")
    assert (engines.code, "is not for TensorRT" in engines.err) == (2, True)


def test_an_elastic_graph_is_measured_block_by_block(exported):
    manifest = exported("bert")[1].manifest
    settings = {
        "XL": ([64, 64, 64], [4, 4, 4], [2, 2, 2], [1, 1, 1]),
        "S": ([32, 0, 32], [4, 0, 4], [1, 0, 1], [1, 0, 1]),
    }
    members = tuple(
        Member(name, manifest.graph, manifest.inputs, manifest.outputs, manifest.parity,
               subnet={"ffn": ffn, "heads": heads}, controls={"ffn_blocks": blocks, "attention_on": on})
        for name, (ffn, heads, blocks, on) in settings.items()
    )  # fmt: skip
    found = device.single_changes(replace(manifest, kind="elastic-onnx", members=members))
    assert [name for name, _ in found[:4]] == [*(f"ffn 32 in layer {layer}" for layer in range(3)), "ffn 0 in layer 0"]
    assert len(found) == 9
    assert found[1][1].subnet == {"ffn": [64, 32, 64], "heads": [4, 4, 4]}
    assert found[1][1].controls == {"ffn_blocks": [2, 1, 2], "attention_on": [1, 1, 1]}
    assert found[-1][1].controls == {"ffn_blocks": [2, 2, 2], "attention_on": [1, 1, 0]}
    assert device.single_changes(manifest) == []


def test_what_does_not_belong_into_one_table_is_refused(bundles, exported, tmp_path):
    with pytest.raises(CheckpointError, match="has the model type vit, and .* bert; measure them into tables of their"):
        profile_bundles([bundles[0][0], exported("vit")[1].bundle_dir], tmp_path / "t.json")
    with pytest.raises(BundleError, match=r"written as \.json"):
        device.profile([bundles[0][0]], tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []
