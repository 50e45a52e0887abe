"""One style for all figures: colours that the colour-blind can tell apart, labels at the lines, ranges over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from PIL import Image
from scipy.optimize import isotonic_regression

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#222222", "#8A8F94"
"""Okabe and Ito's palette, without its yellow, which white paper swallows."""

DPI, TEXT, SMALL = 144, 9.5, 8.5
FLOPS = EngFormatter(sep="")
INK, PALE = "#3A3F44", "#D9DCDF"

DATA = {
    "vit_digits": "a ViT on scikit-learn's digits", "vit_cifar10": "a ViT on CIFAR-10",
    "gpt2_tinyshakespeare": "GPT-2 of 4 layers on tinyshakespeare", "minilm": "MiniLM on the STS benchmark",
    "decoder": "a character decoder of 8 layers",
}  # fmt: skip

Row = Mapping[str, str]
Points = Mapping[float, Sequence[float]]
"""Where on x, and what each seed has there."""


@dataclass(frozen=True)
class Style:
    """How one method looks in all panels of a figure; text says more than colour alone, and so does the marker."""

    text: str
    color: str = BLUE
    marker: str = "o"
    line: str = "-"
    size: float = 4.5


def read(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of some CSV files, one file after the other."""
    rows: list[Row] = []
    for path in paths:
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def by(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    """Group rows by a column, in the order of their first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def points(rows: Iterable[Row], x: str, y: str, *, scale: float = 1.0) -> dict[float, list[float]]:
    """Return what every seed has in column y, by the number in column x."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(float(row[x]) * scale, []).append(float(row[y]))
    return dict(sorted(found.items()))


def seeds(rows: Iterable[Row]) -> str:
    """Say what the markers and bars of a figure are."""
    count = len({row["seed"] for row in rows})
    return "one seed" if count == 1 else f"mean and range of {count} seeds"


def sheet(
    title: str, about: str, *, panels: int = 1, size: tuple[float, float] = (7.2, 4.2), left: float = 0.75,
    right: float = 1.5, between: float = 0.8, ratios: Sequence[float] | None = None, share_y: bool = False,
    titled: bool = False,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return an empty figure: what it shows, with what, and panels side by side; margins in inches."""
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    width, height = size
    inner = (width - left - right - between * (panels - 1)) / panels
    axes = figure.subplots(
        1, panels, squeeze=False, sharey=share_y,
        gridspec_kw={
            "left": left / width, "right": 1 - right / width, "top": 1 - (1.0 if titled else 0.78) / height,
            "bottom": 0.62 / height, "wspace": between / inner, "width_ratios": ratios,
        },
    )[0]  # fmt: skip
    figure.text(0.14 / width, 1 - 0.16 / height, title, va="top", size=11.5, weight="bold", color=BLACK)
    figure.text(0.14 / width, 1 - 0.42 / height, about, va="top", size=SMALL, color=INK)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(GREY)
        one.tick_params(which="both", labelcolor=INK, labelsize=SMALL, color=GREY)
        one.grid(axis="y", color=PALE, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, list(axes)


def name_axes(axes: Axes, x: str, y: str = "", panel: str = "") -> None:
    """Write what the axes are, with units, and what a panel of several shows."""
    axes.set_xlabel(x, size=TEXT, color=INK)
    axes.set_ylabel(y, size=TEXT, color=INK)
    axes.set_title(panel, size=TEXT, color=BLACK, loc="left")


def draw(axes: Axes, at: Points, style: Style, *, strong: bool = False) -> None:
    """Draw the means over seeds as a line, with bars from the lowest seed to the highest."""
    means = [statistics.mean(values) for values in at.values()]
    if any(len(values) > 1 for values in at.values()):
        spans = [(min(values), max(values)) for values in at.values()]
        axes.vlines(list(at), *zip(*spans, strict=True), color=style.color, linewidth=1.1, alpha=0.75)
    axes.plot(
        list(at), means, color=style.color, marker=style.marker, linestyle=style.line, linewidth=2.2 if strong else 1.4,
        markersize=5.5 if strong else style.size, markeredgecolor="white", markeredgewidth=0.6, zorder=2 + strong,
    )  # fmt: skip


def label(axes: Axes, ends: Iterable[tuple[float, float, Style]], *, side: str = "right", gap: float = 12.0) -> None:
    """Write the methods' names beside the ends of their lines, moved apart where they would overlap.

    Call it when the axes have their final limits.
    """
    ends = sorted(ends, key=lambda end: axes.transData.transform(end[:2])[1])
    if not ends:
        return
    points_of = [axes.transData.transform(end[:2])[1] * 72 / axes.figure.dpi for end in ends]
    # The nearest heights in least squares that are a gap apart: an isotonic regression.
    spread = isotonic_regression([y - gap * index for index, y in enumerate(points_of)]).x
    for index, (x, y, style) in enumerate(ends):
        shift = spread[index] + gap * index - points_of[index]
        axes.annotate(
            style.text, (x, y), xytext=(9 if side == "right" else -9, shift), textcoords="offset points", va="center",
            ha="left" if side == "right" else "right", size=SMALL, color=dark(style.color), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style.color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            if abs(shift) > 4
            else None,
        )  # fmt: skip


def last(at: Points) -> tuple[float, float]:
    """Return where a line ends."""
    x = list(at)[-1]
    return x, statistics.mean(at[x])


def note(axes: Axes, at: tuple[float, float], style: Style, *, shift: tuple[float, float], align: str = "left") -> None:
    """Write a method's name beside a point of its line, shifted by (x, y) points."""
    axes.annotate(style.text, at, xytext=shift, textcoords="offset points", ha=align, va="center", size=SMALL,
                  color=dark(style.color))  # fmt: skip


def rule(axes: Axes, y: float, text: str, *, color: str = GREY, line: str = "-") -> None:
    """Draw a horizontal line across the axes, and write what it is at its right end."""
    axes.axhline(y, color=color, linewidth=0.9, linestyle=line, zorder=1)
    axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                  va="center", size=SMALL, color=dark(color))  # fmt: skip


def dark(color: str) -> tuple[float, ...]:
    """Return the colour for text: the same hue, dark enough to read on white (a contrast of 4.5, as WCAG asks)."""
    rgb = to_rgb(color)
    light = sum(share * part**2.2 for share, part in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
    factor = min(1.0, (0.183 / light) ** (1 / 2.2)) if light else 1.0
    return tuple(factor * part for part in rgb)


def flops_axis(axes: Axes) -> None:
    """Make x logarithmic, in FLOPs as people write them."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FLOPS)
    axes.xaxis.set_minor_locator(NullLocator())


def data_text(name: str) -> str:
    """Return what a file was measured on, from the end of its name."""
    return DATA.get(name, name.replace("_", " "))


def quality_text(metric: str) -> str:
    """Return the name of a metric with its unit, and its direction where that is downwards."""
    return "loss, nats (lower is better)" if metric == "loss" else f"{metric}, %"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette of 256 colours: a third of the bytes, and the same to the eye."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def percent(value: Any) -> float:
    """Return a share as per cent."""
    return 100 * float(value)


@dataclass(frozen=True)
class Plot:
    """A figure: its name, the CSVs that it needs, and who draws it."""

    name: str
    csvs: str
    figure: Callable[[Sequence[Row], str], Figure]
    together: bool = False
    """One figure of all files that match, instead of one for each."""

    def jobs(self, results: Path) -> Iterator[tuple[str, list[Path]]]:
        """Yield the name of every image that can be drawn, with the files that it is drawn from."""
        found = sorted(results.glob(self.csvs))
        if self.together:
            yield from [(self.name, found)] if found else []
        else:
            yield from ((path.stem, [path]) for path in found)
