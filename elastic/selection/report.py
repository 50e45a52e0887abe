"""The Pareto report: a table, a picture, and one page that needs nothing else."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from elastic.selection.measured import Measured
from elastic.selection.pareto import pareto_front

_LABELS = {
    "flops": "FLOPs",
    "macs": "multiply-adds",
    "params": "parameters",
    "memory_bytes": "bytes of memory",
    "latency_ms": "predicted milliseconds",
    "energy_mj": "predicted millijoules",
}
_STYLES: dict[str, dict[str, Any]] = {
    "mix": {"marker": "x", "s": 22, "color": "#9aa3ad", "label": "per-layer mix"},
    "uniform": {"marker": "o", "s": 22, "color": "#4c8bd6", "label": "uniform"},
    "granularity": {"marker": "D", "s": 70, "color": "#c4472b", "label": "granularity"},
}


def write_report(
    points: Sequence[Measured], folder: Path, *, model_name: str, model_dir: str, costs: Sequence[str] = ("flops",)
) -> None:
    """Write ``pareto.csv``, ``pareto.png`` and ``index.html`` about measured subnets into an existing folder.

    Bars are 95 % confidence intervals of the quality, where these are known.

    Args:
        points: at least one measured subnet, all by the same metric.
        folder: where to write.
        model_name: the title.
        model_dir: the universal model's folder, for the commands that the page shows.
        costs: over which the front is (see `pareto_front`); the first is the horizontal axis.

    Raises:
        BudgetError: if ``cost`` is unknown.
    """
    front = pareto_front(points, costs)
    _write_csv(points, front, folder / "pareto.csv")
    _write_png(points, front, folder / "pareto.png", model_name, costs)
    _write_page(points, front, folder / "index.html", model_name, model_dir, costs)


def _cost_label(points: Sequence[Measured], cost: str) -> str:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in points[0].cost.input_shapes.items())
    device = f" on {points[0].cost.device}" if cost in ("latency_ms", "energy_mj") else ""
    return f"{_LABELS[cost]} for {shapes}{device}"


def _quality_label(points: Sequence[Measured]) -> str:
    quality = points[0].quality
    return f"{quality.metric} ({quality.split}, {quality.num_examples:,} examples)"


def _write_csv(points: Sequence[Measured], front: Sequence[Measured], path: Path) -> None:
    rows = []
    for point in points:
        data = point.to_dict()
        costs, quality = data["cost"], data["quality"]
        rows.append(
            {
                "name": point.name,
                "kind": point.kind,
                "on_front": point in front,
                **{name: value for name, value in costs.items() if name != "input_shapes"},
                "metric": quality["metric"],
                "quality": quality["value"],
                "split": quality["split"],
                "low": quality.get("interval", ["", ""])[0],
                "high": quality.get("interval", ["", ""])[1],
                "expected": data.get("expected_quality", ""),
                "num_examples": quality["num_examples"],
                "input_shapes": json.dumps(costs["input_shapes"]),
                "subnet": json.dumps(data["subnet"]),
                "description": data["description"],
            }
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_png(
    points: Sequence[Measured], front: Sequence[Measured], path: Path, title: str, costs: Sequence[str]
) -> None:
    cost = costs[0]
    # The object interface: pyplot would keep figures in a global.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    at_front = [getattr(p.cost, cost) for p in front], [p.quality.value for p in front]
    if len(costs) == 1:
        axes.step(*at_front, where="post", color="#c4472b", alpha=0.5, linewidth=1.2, label="Pareto front", zorder=1)
    else:
        label = f"Pareto front by {', '.join(_LABELS[name] for name in costs)}"
        axes.scatter(*at_front, s=130, facecolors="none", edgecolors="#c4472b", alpha=0.5, label=label, zorder=1)
    for point in points:
        if point.quality.interval is not None and math.isfinite(point.quality.value):
            axes.plot([getattr(point.cost, cost)] * 2, point.quality.interval, color="#68727d", alpha=0.35, zorder=1)
    for kind, style in _STYLES.items():
        chosen = [point for point in points if point.kind == kind and math.isfinite(point.quality.value)]
        if chosen:
            axes.scatter([getattr(p.cost, cost) for p in chosen], [p.quality.value for p in chosen], zorder=2, **style)
    for point in points:
        if point.name and math.isfinite(point.quality.value):
            at = (getattr(point.cost, cost), point.quality.value)
            text = axes.annotate(
                _literal(point.name, 24), at, xytext=(7, -12), textcoords="offset points", weight="bold"
            )
            text.set_in_layout(False)  # A long name would squeeze the axes.
    if not points[0].quality.higher_is_better:
        axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(
        title=_literal(title, 70), xlabel=_literal(_cost_label(points, cost)), ylabel=_literal(_quality_label(points))
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=150)


def _literal(text: str, length: int = 200) -> str:
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")


def _write_page(
    points: Sequence[Measured],
    front: Sequence[Measured],
    path: Path,
    title: str,
    model_dir: str,
    costs: Sequence[str],
) -> None:
    cost = costs[0]
    data = {
        "title": title,
        "modelDir": model_dir,
        "cost": cost,
        "frontLabel": ", ".join(_LABELS[name] for name in costs),
        "oneCost": len(costs) == 1,
        "costLabel": _cost_label(points, cost),
        "qualityLabel": _quality_label(points),
        "higherIsBetter": points[0].quality.higher_is_better,
        "points": [_page_point(point, point in front) for point in points],
    }
    template = resources.files("elastic.selection").joinpath("report_page.html").read_text(encoding="utf-8")
    # Inside a script element, only "</script" and "<!--" could end the data.
    path.write_text(
        template.replace("/*DATA*/", json.dumps(data, allow_nan=False).replace("<", "\\u003c")), encoding="utf-8"
    )


def _page_point(point: Measured, on_front: bool) -> dict[str, Any]:
    """The JSON form for a browser, whose JSON has no NaN and no infinity: null instead."""
    data = point.to_dict()
    if not math.isfinite(point.quality.value):
        data["quality"]["value"] = None
    return {**data, "onFront": on_front}
