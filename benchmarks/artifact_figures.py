"""Figures of what leaves training: converted and quantized models, and how they decode."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from figures import (
    BLACK, BLUE, GREEN, GREY, INK, PALE, SKY, SMALL, TEXT, VERMILLION, Row, Style, by, data_text, draw, label, last,
    name_axes, note, percent, points, rule, seeds, sheet,
)  # fmt: skip
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator


def speculative(rows: Sequence[Row], _: str) -> Figure:
    """Time against greedy decoding, every run by itself: they differ by more than the drafts do."""
    figure, (axes,) = sheet(
        "Speculative decoding by nested widths",
        "Llama of 4 layers, 4 tokens a draft; one point a run, on a busy machine",
    )
    styles = {"shared": Style("the target's cache"), "own (assistant_model)": Style("a cache of its own", VERMILLION)}
    sizes = sorted({row["draft_ffn"] for row in rows}, key=float)
    for place, (cache, group) in enumerate(by(rows, "cache").items()):
        style = styles[cache]
        for index, size in enumerate(sizes):
            x = index + 0.16 * (2 * place - 1)
            ratios = [float(row["time / generate"]) for row in group if row["draft_ffn"] == size]
            axes.vlines(x, min(ratios), max(ratios), color=style.color, linewidth=1.1, alpha=0.6)
            axes.plot([x] * len(ratios), ratios, "os"[place], color=style.color, markersize=6, markeredgecolor="white")
            if index == 0:
                at, shift, align = (min(ratios), (4, -11), "center") if place else (max(ratios), (8, 5), "left")
                note(axes, (x, at), style, shift=shift, align=align)
    rule(axes, 1, "as greedy decoding", color=BLACK)
    accepted = {size: statistics.mean(float(r["accepted_per_draft"]) for r in rows if r["draft_ffn"] == size)
                for size in sizes}  # fmt: skip
    axes.set_xticks(
        range(len(sizes)), [f"{float(size):g} of the FFN\n{accepted[size]:.1f} of 4 accepted" for size in sizes]
    )
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.margins(y=0.16)
    name_axes(axes, "", "time, greedy decoding = 1 (lower is better)")
    return figure


def ordering(rows: Sequence[Row], _: str) -> Figure:
    """What each ordering keeps of the full model at three widths, without and with correction."""
    whole, rows = rows[0], rows[1:]
    figure, panels = sheet(
        "Which neurons to keep, without training", f"MiniLM (Spearman {float(whole['test_spearman']):.1f}) on the STS "
        "benchmark, test data; FFNs cut to 75, 50 and 25 %; one run, differences below a point are noise", panels=2,
        size=(9.2, 4.7), left=2.0, right=0.35, between=0.35, share_y=True, titled=True,
    )  # fmt: skip
    shades = {"0.75": SKY, "0.5": BLUE, "0.25": BLACK}
    titles = {"": "cut", "least squares": "cut, and corrected by least squares"}
    names = list(dict.fromkeys(row["method"] for row in rows))
    kept = [float(row["test_kept_percent"]) for row in rows]
    for axes, (correction, title) in zip(panels, titles.items(), strict=True):
        for row in (row for row in rows if row["correction"] == correction):
            at = float(row["test_kept_percent"]), names.index(row["method"])
            axes.plot(*at, "o", color=shades[row["ffn_share"]], markersize=7, markeredgecolor="white", zorder=3)
            if row["method"] == names[0]:
                width = f"{percent(row['ffn_share']):.0f} %"
                note(axes, at, Style(width, shades[row["ffn_share"]]), shift=(0, -13), align="center")
        axes.axvline(100, color=GREY, linewidth=0.9, zorder=1)
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_xlim(min(kept) - 0.7, max(kept) + 0.7)
        name_axes(axes, "Spearman, % of the full model's", "", title)
    panels[0].set_yticks(range(len(names)), [name.replace(":", ",").replace(" random", "\nrandom") for name in names])
    panels[0].set_ylim(-0.9, len(names) - 0.5)
    panels[0].set_ylabel("neurons ordered by", size=TEXT, color=INK)
    return figure


def distilled(rows: Sequence[Row], _: str) -> Figure:
    """Each granularity as converted, and after training on sentences without labels."""
    figure, (axes,) = sheet(
        "A pretrained embedder made elastic", f"all-MiniLM-L6-v2 on the STS benchmark, test data; {seeds(rows)}",
        size=(7.2, 3.2), left=1.15, right=0.4,
    )  # fmt: skip
    names = {"full": "whole", "ffn50": "half of the FFN", "layers4": "4 of 6 layers", "layers2": "2 of 6 layers"}
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    groups = by(rows, "granularity")
    for place, group in enumerate(reversed(groups.values())):
        before = statistics.mean(float(row["one_shot_test_spearman"]) for row in group)
        after = [float(row["test_spearman"]) for row in group]
        axes.plot([before, statistics.mean(after)], [place, place], color=PALE, linewidth=4, solid_capstyle="round")
        axes.hlines(place, min(after), max(after), color=BLUE, linewidth=1.4)
        axes.plot(before, place, "s", color=VERMILLION, markersize=7, markeredgecolor="white")
        axes.plot(statistics.mean(after), place, "o", color=BLUE, markersize=8, markeredgecolor="white")
        if not place:
            note(axes, (before, 0), Style("converted", VERMILLION), shift=(0, 12), align="center")
            note(axes, (statistics.mean(after), 0), Style("then trained"), shift=(0, 12), align="center")
    axes.margins(x=0.09, y=0.14)
    axes.set_yticks(range(len(groups)), [names.get(name, name) for name in reversed(groups)])
    name_axes(axes, "Spearman x 100")
    return figure


def quantization(rows: Sequence[Row], _: str) -> Figure:
    """Size, time and what is lost, for each precision of an embedder."""
    return _bars(
        "Precisions of one bundle",
        "all-MiniLM-L6-v2 on ONNX Runtime, one thread, batches of 4 x 64 tokens; STS benchmark, test data",
        [row["precision"] for row in rows],
        {
            "file, MB": [float(row["megabytes"]) for row in rows],
            "time, float32 = 1": [float(row["latency_4x64"]) for row in rows],
            "Spearman lost, points": [float(row["test_loss"]) for row in rows],
        },
    )


def decoder_precision(rows: Sequence[Row], _: str) -> Figure:
    """The same for a decoder, by the step with a key-value cache; of models with quality, the first."""
    splits = by(rows, "split")
    judged = splits.get("test") or splits["validation"]
    model = judged[0]["model"]
    rows = [row for row in judged if row["model"] == model]
    return _bars(
        "Precisions of one decoder",
        f"{model}; on ONNX Runtime, one thread, a step after {rows[0]['cached']} tokens; {rows[0]['split']} data",
        [row["precision"] for row in rows],
        {
            "weights, MB": [float(row["weight_bytes"]) / 1e6 for row in rows],
            "time of a step, float32 = 1": [float(row["step_ratio"]) for row in rows],
            "loss added, nats": [float(row["loss_more"]) for row in rows],
        },
    )


def _bars(title: str, about: str, names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Figure:
    figure, panels = sheet(
        title, about, panels=len(columns), size=(9.6, 1.6 + 0.3 * len(names)), right=0.3, between=0.35, share_y=True,
        left=0.5 + 0.066 * max(map(len, names)),
    )  # fmt: skip
    places = range(len(names))[::-1]
    for axes, (text, values), color in zip(panels, columns.items(), (SKY, GREEN, VERMILLION), strict=True):
        axes.barh(places, values, height=0.55, color=color)
        digits = 3 if max(values) < 0.1 else 2 if max(values) < 20 else 0
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{round(value, digits) + 0.0:.{digits}f}", (max(value, 0), place), xytext=(4, 0),
                          textcoords="offset points", va="center", size=SMALL, color=INK)  # fmt: skip
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(visible=False)
        name_axes(axes, text)
    panels[0].set_yticks(places, names)
    return figure


def joint_precision(rows: Sequence[Row], data: str) -> Figure:
    """Test quality within each latency: subnets in one precision, and in either."""
    figure, (axes,) = sheet(
        "Choosing the precision with the subnet", f"{data_text(data)}: chosen on validation data, compared on test data"
    )
    styles = {"fp32": Style("float32", VERMILLION, "s", "--"), "int8": Style("int8", GREEN, "D", "--"),
              "joint": Style("either")}  # fmt: skip
    groups = by([row for row in rows if row.get("test")], "search")
    ends = []
    for name in [*groups]:
        style = styles.get(name, Style(name, SKY, "^", "--"))
        at = points(groups[name], "budget_ms", "test")
        draw(axes, at, style, strong=name == "joint")
        ends.append((*last(at), style))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    name_axes(axes, "budget, ms (logarithmic)", "accuracy, %")
    label(axes, ends)
    return figure
