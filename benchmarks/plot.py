"""Draw the CSVs of the quality benchmarks, an image of docs/images for each.

    python benchmarks/plot.py                      # all that have their CSV
    python benchmarks/plot.py embeddings search    # some
    python benchmarks/plot.py --results FOLDER --output FOLDER

Where a method was run with several seeds, markers are means and bars go from the lowest seed to the highest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import (
    BLACK, BLUE, FLOPS, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, SMALL, TEXT, VERMILLION, Plot, Row, Style, by,
    draw, flops_axis, label, last, name_axes, note, percent, points, quality_text, read, rule, save, seeds, sheet,
)  # fmt: skip
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 80_000
DATA = {
    "vit_digits": "a ViT on scikit-learn's digits", "vit_cifar10": "a ViT on CIFAR-10",
    "gpt2_tinyshakespeare": "GPT-2 of 4 layers on tinyshakespeare", "minilm": "MiniLM on the STS benchmark",
    "decoder": "a character decoder of 8 layers",
}  # fmt: skip


def _data(name: str) -> str:
    return DATA.get(name, name.replace("_", " "))


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
        "MatFormer: one model against one for each granularity", f"{_data(data)}, test data{cost}; {seeds(rows)}"
    )
    styles = {"universal": Style("universal"), "alone": Style("each trained alone", VERMILLION, "s", "--")}
    ends = []
    for column, style in styles.items():
        at = points(kinds["granularity"], "flops", column)
        draw(axes, at, style, strong=column == "universal")
        ends.append((*last(at), style))
    if "mix" in kinds:
        mixes = points(kinds["mix"], "flops", "universal")
        means = [statistics.mean(values) for values in mixes.values()]
        axes.plot(list(mixes), means, "D", color=SKY, markersize=5, markeredgecolor="white", zorder=4)
        note(axes, (next(iter(mixes)), means[0]), Style("half of the layers each", SKY), shift=(8, 0))
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
        "LayerDrop: layers left out, no fine-tuning", f"{_data(data)}, test data; {seeds(rows)}", right=0.3
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
        f"SortedNet: {len(subnets)} subnets of one run", f"{_data(data)}, test data; {seeds(rows)}", right=1.2
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
        "Routers against static sets of attention sub-layers", f"{_data(data)}, test data; {seeds(rows)}", right=1.65
    )
    styles = {
        "random": Style("random static sets", GREY, "s", ":"), "router": Style("router", VERMILLION, "^"),
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


def search(rows: Sequence[Row], data: str) -> Figure:
    """Regret of each search method at every budget, and what it measured for it."""
    figure, (axes, spent) = sheet(
        "Search at ten budgets", f"{_data(data)}: chosen on validation data, compared on test data", panels=2,
        size=(9.6, 4.4), ratios=(1.25, 1), between=1.2, right=1.0, titled=True,
    )  # fmt: skip
    styles = {
        "random": Style("random", GREY, "s", ":"), "uniform": Style("uniform", ORANGE, "^", "--"),
        "heuristic": Style("heuristic", GREEN, "P", "--"), "evolution": Style("evolution", VERMILLION, "D", "--"),
        "predictor": Style("predictor"),
    }  # fmt: skip
    groups = by(rows, "method")
    means = []
    for name in [name for name in styles if name in groups]:
        at = points(groups[name], "budget", "regret")
        draw(axes, at, styles[name], strong=name == "predictor")
        regret, count = (statistics.mean(float(row[c]) for row in groups[name]) for c in ("regret", "evaluations"))
        spent.plot(count, regret, styles[name].marker, color=styles[name].color, markersize=8)
        means.append((count, regret, styles[name]))
    axes.xaxis.set_major_formatter(FLOPS)
    axes.set_ylim(bottom=0)
    name_axes(axes, "budget, FLOPs", "regret on test data, points (lower is better)", "at each budget")
    flops_axis(spent)
    spent.set_ylim(0, 1.25 * max(regret for _, regret, _ in means) or 1)
    name_axes(spent, "subnets measured for a budget", "mean regret, points", "mean over budgets")
    label(spent, means)
    return figure


def universal(rows: Sequence[Row], data: str) -> Figure:
    """Along every axis: a run with all axes, and a run with that axis alone."""
    axes_of = by(rows, "axis")
    figure, panels = sheet(
        "All axes in one run, against one axis a run", f"{_data(data)}, test data; {seeds(rows)}", panels=len(axes_of),
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
    """Size, time and what is lost, for each precision."""
    figure, panels = sheet(
        "Precisions of one bundle",
        "all-MiniLM-L6-v2 on ONNX Runtime, one thread, batches of 4 x 64 tokens; STS benchmark, test data", panels=3,
        size=(9.2, 1.6 + 0.32 * len(rows)), left=1.9, right=0.5, between=0.4, share_y=True,
    )  # fmt: skip
    names = [row["precision"] for row in reversed(rows)]
    columns = {"megabytes": "file, MB", "latency_4x64": "time, float32 = 1",
               "test_loss": "Spearman lost, points"}  # fmt: skip
    for axes, (column, text), color in zip(panels, columns.items(), (SKY, GREEN, VERMILLION), strict=True):
        values = [round(float(row[column] or "nan"), 2) + 0.0 for row in reversed(rows)]
        axes.barh(range(len(names)), values, height=0.55, color=color)
        for place, value in enumerate(values):
            axes.annotate(f"{value:.2f}" if column != "megabytes" else f"{value:.0f}", (max(value, 0), place),
                          xytext=(4, 0), textcoords="offset points", va="center", size=SMALL, color=INK)  # fmt: skip
        axes.margins(x=0.2)
        axes.grid(visible=False)
        name_axes(axes, text)
    panels[0].set_yticks(range(len(names)), names)
    return figure


PLOTS = (
    Plot("embeddings", "embeddings_*.csv", embeddings, together=True),
    Plot("retrieval", "embeddings_universal.csv", retrieval, together=True),
    Plot("granularities", "granularities_*.csv", granularities),
    Plot("layerdrop", "layerdrop_*.csv", layerdrop),
    Plot("sortednet", "sortednet_*.csv", sortednet),
    Plot("router_tuning", "router_tuning_*.csv", routers),
    Plot("search", "search_*.csv", search),
    Plot("universal", "universal_*.csv", universal),
    Plot("speculative", "speculative.csv", speculative),
    Plot("ordering", "convert_minilm_one_shot.csv", ordering, together=True),
    Plot("distilled", "convert_minilm_distilled.csv", distilled, together=True),
    Plot("quantization", "quantization_*.csv", quantization),
)


def draw_all(results: Path, output: Path, names: Sequence[str] = ()) -> list[Path]:
    """Draw the plots of these names, or all, from the CSVs that are there; return the images."""
    written = []
    for plot in PLOTS:
        for name, paths in plot.jobs(results) if not names or plot.name in names else ():
            data = name.removeprefix(f"{plot.name}_")
            save(plot.figure(read(paths), data), output / f"{name}.png")
            written.append(output / f"{name}.png")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(plot.name for plot in PLOTS)}")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    unknown = set(args.names) - {plot.name for plot in PLOTS}
    if unknown:
        parser.error(f"there is no plot {', '.join(sorted(unknown))}")
    for path in draw_all(args.results, args.output, args.names):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
