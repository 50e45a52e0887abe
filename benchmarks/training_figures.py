"""Figures of what training gives: embedders, granularities, depth, subnets, routers, search."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from figures import (
    BLACK, BLUE, FLOPS, GREEN, GREY, ORANGE, PURPLE, SKY, SMALL, VERMILLION, Row, Style, by, data_text, draw,
    flops_axis, label, last, name_axes, note, percent, points, quality_text, rule, seeds, sheet,
)  # fmt: skip
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator

EMBEDDERS = {
    "as it comes": Style("cut, as it comes", GREY, "s", ":"),
    "converted": Style("converted, no training", SKY, "D", ":"),
    "Matryoshka2dLoss": Style("Matryoshka2dLoss", ORANGE, "^", "--"),
    "2dmse": Style("2dmse", PURPLE, "v", "--"),
    "starbucks": Style("starbucks", GREEN, "P"),
    "separate": Style("six separate models", BLACK, "s", "--"),
    "universal_embedder separate": Style("separate, our layers", GREY, "X", "--"),
    "universal_embedder": Style("universal_embedder", BLUE),
}


def embeddings(rows: Sequence[Row], _: str) -> Figure:
    """Spearman by size: what everything reaches, and how far it is from models of those sizes trained alone."""
    figure, (whole, near) = sheet(
        "Six sizes of one embedder", f"all-MiniLM-L6-v2 on the STS benchmark, test data; {seeds(rows)}",
        panels=2, size=(9.6, 4.5), between=1.05, right=1.75, titled=True,
    )  # fmt: skip
    sizes, found = _sizes(rows, "test")
    alone = {x: statistics.mean(values) for x, values in found.get("separate", {}).items()}
    for name, at in found.items():
        draw(whole, at, EMBEDDERS[name], strong=name == "universal_embedder")
    _size_ticks(whole, sizes, "Spearman x 100", "all methods")
    for name, place in (("as it comes", 2), ("converted", 0)):
        if name in found:
            note(whole, (place, found[name][place][0]), EMBEDDERS[name], shift=(9, -7))
    ends = []
    for name, at in found.items():
        gaps = {x: [value - alone[x] for value in values] for x, values in at.items() if x in alone}
        if gaps and min(map(min, gaps.values())) > -9:
            draw(near, gaps, EMBEDDERS[name], strong=name == "universal_embedder")
            ends.append((*last(gaps), EMBEDDERS[name]))
    _size_ticks(near, sizes, "difference, points", "against models of each size trained alone")
    label(near, ends)
    return figure


def retrieval(rows: Sequence[Row], _: str) -> Figure:
    """NDCG by size, with documents of the same size and against the index of the largest."""
    rows = [row for row in rows if row.get("ndcg")]
    figure, panels = sheet(
        "Retrieval, which nothing was trained on", f"Cranfield, queries of each size; {seeds(rows)}", panels=2,
        size=(9.0, 4.2), right=1.7, between=0.3, share_y=True, titled=True,
    )  # fmt: skip
    for axes, column, title in zip(
        panels, ("ndcg", "ndcg_large"), ("documents of the same size", "documents of the largest, cut"), strict=True
    ):
        sizes, found = _sizes(rows, column)
        for name, at in found.items():
            draw(axes, at, EMBEDDERS[name], strong=name == "universal_embedder")
        _size_ticks(axes, sizes, "nDCG@10 x 100" if axes is panels[0] else "", title)
        axes.set_ylim(bottom=0)
    label(panels[1], [(*last(at), EMBEDDERS[name]) for name, at in found.items()])
    return figure


def _sizes(rows: Sequence[Row], column: str) -> tuple[list[str], dict[str, dict[float, list[float]]]]:
    sizes = sorted({row["size"] for row in rows}, key=lambda size: int(size.split("x")[0]))
    # A run that is in two files counts once, as in the last of them.
    once = {(row["method"], row["seed"], row["size"]): row for row in rows}
    groups = by([{**row, "place": str(sizes.index(row["size"]))} for row in once.values()], "method")
    return sizes, {name: points(groups[name], "place", column) for name in EMBEDDERS if name in groups}


def _size_ticks(axes: Axes, sizes: Sequence[str], quality: str, panel: str = "") -> None:
    axes.set_xticks(range(len(sizes)), [size.replace("x", "\n") for size in sizes])
    name_axes(axes, "layers, dimensions", quality, panel)


def granularities(rows: Sequence[Row], data: str) -> Figure:
    """Quality against FLOPs: the universal model, models trained alone, mixes between."""
    kinds = by([{**row, "kind": row.get("kind", "granularity")} for row in rows], "kind")
    first = rows[0]
    cost = f", at {float(first['training_cost']):.2f} of the FLOPs of training all alone" if "kind" in first else ""
    figure, (axes,) = sheet(
        "MatFormer: one model against one for each granularity", f"{data_text(data)}, test data{cost}; {seeds(rows)}"
    )
    styles = {"universal": Style("universal"), "alone": Style("each trained alone", VERMILLION, "s", "--")}
    ends = []
    for column, style in styles.items():
        at = points(kinds["granularity"], "flops", column)
        draw(axes, at, style, strong=column == "universal")
        ends.append((*last(at), style))
    between = {"mix": Style("by the rule", SKY, "D"), "search": Style("by search", GREEN, "P")}
    for kind, style in between.items():
        mixes = [
            [statistics.mean(float(row[column]) for row in group) for column in ("flops", "universal")]
            for group in by(kinds.get(kind, ()), "granularity").values()
        ]
        for index, (flops, value) in enumerate(mixes):
            axes.plot(flops, value, style.marker, color=style.color, markersize=6, markeredgecolor="white", zorder=4)
            if not index:
                note(
                    axes,
                    (flops, value),
                    Style(f"mixed layers, {style.text}", style.color),
                    shift=(8, 7) if kind == "mix" else (-12, -14),
                )
    axes.set_xscale("log")
    sizes = {name: float(group[0]["flops"]) for name, group in by(kinds["granularity"], "granularity").items()}
    axes.set_xticks(list(sizes.values()), [f"{name}\n{FLOPS(float(f'{flops:.3g}'))}" for name, flops in sizes.items()])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06, y=0.1)
    name_axes(axes, "granularity, FLOPs of a forward pass (logarithmic)", quality_text(rows[0]["metric"]))
    label(axes, ends)
    return figure


def layerdrop(rows: Sequence[Row], data: str) -> Figure:
    """Accuracy by the number of layers kept, with LayerDrop and without."""
    figure, (axes,) = sheet(
        "LayerDrop: layers left out, no fine-tuning", f"{data_text(data)}, test data; {seeds(rows)}", right=0.3
    )
    styles = {"with LayerDrop": Style("with LayerDrop"), "without": Style("without", VERMILLION, "s", "--")}
    for name, group in by(rows, "run").items():
        at = points(group, "choice", "quality")
        draw(axes, at, styles[name], strong=name == "with LayerDrop")
        x = list(at)[len(at) // 4]
        note(axes, (x, statistics.mean(at[x])), styles[name], shift=(10, -8))
    axes.xaxis.set_major_locator(MultipleLocator(1))
    name_axes(axes, "layers kept", "accuracy, %")
    return figure


def sortednet(rows: Sequence[Row], data: str) -> Figure:
    """Every subnet as a share of the full model against its FLOPs, with the range over seeds."""
    subnets = by(rows, "subnet")
    figure, (axes,) = sheet(
        f"SortedNet: {len(subnets)} subnets of one run", f"{data_text(data)}, test data; {seeds(rows)}", right=1.2
    )
    colors = [VERMILLION, ORANGE, SKY, BLUE]
    layers: dict[int, list[tuple[float, float, float, float]]] = {}
    for name, group in subnets.items():
        kept = [percent(row["kept"]) for row in group]
        one = float(group[0]["flops"]), statistics.mean(kept), min(kept), max(kept)
        layers.setdefault(int(name.split("/")[0]), []).append(one)
    for depth, found in sorted(layers.items()):
        flops, means, lows, highs = zip(*found, strict=True)
        color = colors[min(depth, len(colors)) - 1]
        axes.vlines(flops, lows, highs, color=color, linewidth=0.7, alpha=0.35)
        axes.plot(flops, means, "o", color=color, markersize=4, markeredgecolor="white", markeredgewidth=0.4, zorder=3,
                  label=f"{depth} layer{'s' if depth > 1 else ''}")  # fmt: skip
    rule(axes, 100, "full model")
    overall = statistics.mean(percent(row["kept"]) for row in rows)
    rule(axes, overall, f"mean {overall:.1f}", color=BLACK, line="--")
    flops_axis(axes)
    name_axes(axes, "FLOPs of a forward pass (logarithmic)", "accuracy, % of the full model's")
    axes.legend(
        loc="lower right", fontsize=SMALL, frameon=False, handletextpad=0.1, markerscale=1.5, labelcolor="linecolor"
    )
    return figure


def routers(rows: Sequence[Row], data: str) -> Figure:
    """Quality against the share of attention that was skipped."""
    figure, (axes,) = sheet(
        "Routers against static sets of attention sub-layers",
        f"{data_text(data)}, test data; {seeds(rows)}",
        right=1.65,
    )
    styles = {
        "random": Style("random static sets", GREY, "s", ":"), "router": Style("router", VERMILLION, "^"),
        "straight-through router": Style("router, straight-through", ORANGE, "v", "--"),
        "frozen router": Style("static set of the router", SKY, "D", "", 8.5), "static": Style("best static set"),
    }  # fmt: skip
    groups = by(rows, "method")
    nothing = statistics.mean(float(row["quality"]) for row in groups["nothing skipped"])
    rule(axes, nothing, "nothing skipped")
    ends = []
    for name, style in styles.items():
        at = {share: [float(row["quality"]) for row in group] for share, group in _shares(groups[name])}
        draw(axes, at if name == "frozen router" else {0.0: [nothing], **at}, style, strong=name == "router")
        ends.append((*last(at), style))
    name_axes(axes, "attention skipped, %", "loss, nats (lower is better)" if nothing < 20 else "Spearman x 100")
    label(axes, ends)
    return figure


def _shares(rows: Sequence[Row]) -> Iterator[tuple[float, list[Row]]]:
    for group in by(rows, "asked_share").values():
        yield statistics.mean(percent(row["skipped_share"]) for row in group), group


def router_signal(rows: Sequence[Row], data: str) -> Figure:
    """How much texts differ in what an attention gains them, and how much of that its router could tell."""
    figure, (axes,) = sheet("What a router could know", f"{data_text(data)}, validation data; {seeds(rows)}", right=2.2)
    styles = {"differ": Style("how much texts differ"), "told": Style("what a router's input tells", VERMILLION, "^")}
    spread = points(rows, "layer", "deviation")
    explained = points(rows, "layer", "variance_explained")
    told = {x: [s * max(0.0, r) ** 0.5 for s, r in zip(spread[x], explained[x], strict=True)] for x in spread}
    for name, at in (("differ", spread), ("told", told)):
        draw(axes, at, styles[name], strong=name == "told")
    name_axes(axes, "layer", "standard deviation of the gain, nats")
    axes.set_ylim(bottom=0)
    label(axes, [(*last(spread), styles["differ"]), (*last(told), styles["told"])])
    return figure


def search(rows: Sequence[Row], data: str) -> Figure:
    """Regret of each search method at every budget, and what it measured for it."""
    figure, (axes, spent) = sheet(
        "Search at ten budgets", f"{data_text(data)}: chosen on validation data, compared on test data", panels=2,
        size=(9.6, 4.4), ratios=(1.25, 1), between=1.2, right=1.0, titled=True,
    )  # fmt: skip
    styles = {
        "random": Style("random", GREY, "s", ":"), "uniform": Style("uniform", ORANGE, "^", "--"),
        "heuristic": Style("heuristic", GREEN, "P", "--"), "evolution": Style("evolution", VERMILLION, "D", "--"),
        "predictor": Style("predictor"), "all": Style("best of all", GREY, "*", "-."),
    }  # fmt: skip
    groups = by(rows, "method")
    means = []
    for name in [name for name in styles if name in groups]:
        at = points(groups[name], "budget", "regret")
        draw(axes, at, styles[name], strong=name == "predictor")
        if len(at) < len(by(rows, "budget")):
            # A mean over other budgets would be compared with the means over all.
            note(axes, next((x, values[0]) for x, values in at.items()), styles[name], shift=(9, 9))
            continue
        regret, count = (statistics.mean(float(row[c]) for row in groups[name]) for c in ("regret", "evaluations"))
        spent.plot(count, regret, styles[name].marker, color=styles[name].color, markersize=8)
        means.append((count, regret, styles[name]))
    axes.xaxis.set_major_formatter(FLOPS)
    axes.set_ylim(bottom=0)
    unit = "nats" if rows[0]["metric"] == "loss" else "points"
    name_axes(axes, "budget, FLOPs", f"regret on test data, {unit} (lower is better)", "at each budget")
    flops_axis(spent)
    spent.set_ylim(0, 1.25 * max(regret for _, regret, _ in means) or 1)
    name_axes(spent, "subnets measured for a budget", f"mean regret, {unit}", "mean over budgets")
    label(spent, means)
    return figure


def universal(rows: Sequence[Row], data: str) -> Figure:
    """Along every axis: a run with all axes, and a run with that axis alone."""
    axes_of = by(rows, "axis")
    figure, panels = sheet(
        "All axes in one run, against one axis a run", f"{data_text(data)}, test data; {seeds(rows)}",
        panels=len(axes_of),
        size=(2.1 + 2.3 * len(axes_of), 3.8), titled=True, between=0.3, right=1.3, share_y=True,
    )  # fmt: skip
    styles = {"quality": Style("all axes"), "single_axis": Style("this axis alone", VERMILLION, "s", "--")}
    for axes, (name, group) in zip(panels, axes_of.items(), strict=True):
        lines = {column: points(group, "choice", column) for column in styles}
        for column, at in lines.items():
            draw(axes, at, styles[column], strong=column == "quality")
        axes.set_xticks(list(lines["quality"]), [f"{choice:g}" for choice in lines["quality"]])
        name_axes(axes, "", "accuracy, %" if axes is panels[0] else "", name.replace("_", " "))
    label(panels[-1], [(*last(at), styles[column]) for column, at in lines.items()])
    return figure
