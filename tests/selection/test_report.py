"""The report's files, read back as a browser, a spreadsheet and a picture viewer would."""

from __future__ import annotations

import csv
import dataclasses
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from elastic.selection.report import _literal, write_report
from tests.selection.points import point

HOSTILE = "</script><script>alert('x')</script> $x_1 & \"q\""


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.data, self._in_data = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self._in_data = attributes.get("id") == "data"

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, text):
        if self._in_data:
            self.data += text


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_report(tmp_path, higher_is_better):
    points = [
        point(100, 80.0, kind="granularity", name=HOSTILE, higher_is_better=higher_is_better, width=8),
        point(150, 70.0, higher_is_better=higher_is_better, width=12),
        point(200, 90.0, kind="mix", higher_is_better=higher_is_better, width=16),
    ]
    write_report(points, tmp_path, model_name=HOSTILE, model_dir="it's here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "pareto.csv", "pareto.png"]
    page = Page((tmp_path / "index.html").read_text())
    assert page.tags.count("script") == 2
    assert page.links == []
    data = json.loads(page.data)
    assert data["title"] == HOSTILE
    assert [p["onFront"] for p in data["points"]] == ([True, False, True] if higher_is_better else [True, True, False])
    assert data["points"][0]["subnet"] == {"ffn": [8], "heads": [2]}
    assert data["qualityLabel"].endswith("(validation, 359 examples)")
    assert "pixel_values 1x1x8x8" in data["costLabel"]
    with (tmp_path / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [HOSTILE, "", ""]
    assert [float(row["quality"]) for row in rows] == [80.0, 70.0, 90.0]
    assert json.loads(rows[2]["subnet"]) == {"ffn": [16], "heads": [2]}
    with Image.open(tmp_path / "pareto.png") as image:
        assert image.width > 800


def test_a_single_point(tmp_path):
    write_report([point()], tmp_path, model_name="one", model_dir="m", costs=["params"])
    assert (tmp_path / "index.html").stat().st_size > 5000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_quality_that_is_not_finite_is_in_the_table_only(tmp_path, value):
    write_report([point(100, value), point(200, 90.0, width=3)], tmp_path, model_name="one", model_dir="m")
    data = json.loads(Page((tmp_path / "index.html").read_text()).data, parse_constant=pytest.fail)
    assert [p["quality"]["value"] for p in data["points"]] == [None, 90.0]
    assert [p["onFront"] for p in data["points"]] == [False, True]


def test_nothing_finite_at_all(tmp_path):
    write_report([point(100, float("nan"))], tmp_path, model_name="one", model_dir="m")
    assert (tmp_path / "pareto.png").stat().st_size > 1000


def test_a_long_name_leaves_room_for_the_axes():
    assert len(_literal("M" * 60, 24)) == 24


def test_several_costs_and_intervals(tmp_path):
    sure = point(100, 50.0, name="S")
    sure = dataclasses.replace(sure, quality=dataclasses.replace(sure.quality, interval=(48.0, 51.5)))
    write_report([sure, point(200, 60.0)], tmp_path, model_name="m", model_dir="d", costs=["flops", "params"])
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    assert [(row["low"], row["high"]) for row in rows] == [("48.0", "51.5"), ("", "")]
    page = (tmp_path / "index.html").read_text()
    assert '"frontLabel": "FLOPs, parameters"' in page and '"interval": [48.0, 51.5]' in page
