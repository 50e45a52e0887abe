"""The figures of the documentation are drawn from the CSVs of the benchmarks."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def plot():
    path = ROOT / "benchmarks" / "plot.py"
    spec = importlib.util.spec_from_file_location("benchmarks_plot", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    kept = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = kept
    return module


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def searched():
    """Rows as benchmarks/quality/search.py writes them."""
    rng = random.Random(0)
    methods = {"predictor": 80, "heuristic": 48, "uniform": 12, "random": 100, "evolution": 800}
    return [
        {"budget": 10**6 * index, "metric": "accuracy", "method": method, "evaluations": count, "validation": 96.0,
         "test": 95.0, "flops": 10**6 * index, "subnet": "", "rank_correlation": "", "regret": rng.random()}
        for index in range(1, 11) for method, count in methods.items()
    ]  # fmt: skip


def universal():
    """Rows as benchmarks/quality/methods.py writes them for ``universal``."""
    return [
        {"seed": seed, "split": "test", "run": "universal", "axis": axis, "choice": choice, "flops": 10**6,
         "quality": 95 + choice, "single_axis": 95.5 + choice - seed, "gap": 0}
        for seed in range(2) for axis in ("ffn", "layers") for choice in (1, 2, 4)
    ]  # fmt: skip


def joint():
    """Rows as benchmarks/quality/joint_precision.py writes them; float32 does not reach the first latency."""
    return [
        {"budget_ms": budget, "search": name, "test": 90 if (name, budget) != ("fp32", 0.1) else ""}
        for budget in (0.1, 0.2, 0.4) for name in ("fp32", "int8", "joint")
    ]  # fmt: skip


def decoders():
    """Rows as benchmarks/quality/decoder_precision.py writes them."""
    return [
        {"model": model, "precision": name, "weight_bytes": 10**6, "step_ratio": 1.1, "split": split, "cached": 48,
         "loss_more": loss if split else ""}
        for model, split in (("a", "validation"), ("a", "test"), ("b", ""))
        for name, loss in (("fp32", 0), ("int8", 0.1))
    ]  # fmt: skip


JOBS = sorted(path.name for path in RESULTS.glob("*.csv"))


@pytest.mark.parametrize("name", JOBS)
def test_every_csv_of_a_plot_is_drawn(plot, tmp_path, name):
    plots = [one for one in plot.PLOTS if (RESULTS / name).match(one.csvs)]
    command = next(csv.DictReader((RESULTS / name).open()))["command"]
    assert plots or "benchmarks/quality/" not in command, "a quality benchmark has a plot"
    (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    drawn = plot.draw_all(tmp_path, tmp_path / "images")
    assert len(drawn) == len(plots)
    for path in drawn:
        assert path.stat().st_size < plot.MAX_BYTES
        assert min(Image.open(path).size) > 300


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("search_vit_digits", searched()),
        ("universal_vit_digits", universal()),
        ("joint_precision_vit_digits", joint()),
        ("decoder_precision", decoders()),
    ],
    ids=lambda value: value if isinstance(value, str) else "rows",
)
def test_results_that_are_still_to_come_are_drawn(plot, tmp_path, name, rows):
    write(tmp_path / f"{name}.csv", rows)
    (path,) = plot.draw_all(tmp_path, tmp_path)
    assert path.name == f"{name}.png"
    assert 1000 < path.stat().st_size < plot.MAX_BYTES


def test_only_the_plots_that_were_asked_for_are_drawn(plot, tmp_path):
    write(tmp_path / "search_vit_digits.csv", searched())
    write(tmp_path / "universal_vit_digits.csv", universal())
    assert [path.stem for path in plot.draw_all(tmp_path, tmp_path, ["search"])] == ["search_vit_digits"]


def test_the_images_in_the_documentation_are_those_of_the_results(plot):
    expected = {name for one in plot.PLOTS for name, _ in one.jobs(RESULTS)}
    assert {path.stem for path in IMAGES.glob("*.png")} == expected, "python benchmarks/plot.py; and remove old images"
    assert max(path.stat().st_size for path in IMAGES.glob("*.png")) < plot.MAX_BYTES


def test_labels_of_lines_do_not_overlap(plot):
    figures = sys.modules["figures"]
    figure, (axes,) = figures.sheet("Title", "about")
    axes.set_ylim(0, 10)
    ends = [(1.0, 5.0 + 0.01 * index, figures.Style(f"line {index}")) for index in range(5)]
    figures.label(axes, ends)
    heights = [axes.transData.transform(text.xy)[1] * 72 / figure.dpi + text.xyann[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [end[2].text for end in ends]
    assert all(high - low > 1.15 * figures.SMALL for low, high in itertools.pairwise(heights))
