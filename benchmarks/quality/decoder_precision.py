r"""A trained decoder in every precision on ONNX Runtime: loss, tokens that stay the same, size, latency of a step.

    python benchmarks/quality/decoder_precision.py UNIVERSAL -o benchmarks/results/decoder_precision.csv

UNIVERSAL is a universal decoder; its largest subnet is exported. The recorded one was trained by
`recipes/matformer_llama_stdlib.yaml --variant tinyshakespeare`. Loss and agreement (the most likely token is float32's)
are over all tokens of the split. Size is that of the weights in the graph. Latency is CPU time of one thread for one
token after a cached text, by float32's, medians over alternating rounds; ``--wide`` adds that of a Llama with random
weights (hidden size 768, 4 layers, 8,000 tokens), which says nothing of quality.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.data import Task
from elastic.export import PrecisionOptions, export_onnx
from elastic.export.precision.calibration import complete
from elastic.export.runtime.bench import make_inputs
from elastic.export.runtime.session import Bundle
from elastic.extraction import extract
from elastic.nested import get_elastic
from elastic.pipeline import Universal

PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "int8": ("int8", {}),
    "int4, blocks of 32": ("int4", {"block_size": 32}),
    "int4, blocks of 64": ("int4", {"block_size": 64}),
    "int4, blocks of 128": ("int4", {"block_size": 128}),
}


def export_all(model: PreTrainedModel, folder: Path) -> dict[str, Bundle]:
    """Export a decoder in every precision."""
    bundles = {}
    for index, (name, (precision, options)) in enumerate(PRECISIONS.items()):
        bundle = folder / str(index)
        if not bundle.exists():
            export_onnx(model, bundle, precision=precision, precision_options=PrecisionOptions(**options))
        bundles[name] = Bundle.open(bundle, threads=1)
        print(f"exported {name}", flush=True)
    return bundles


def judged(bundle: Bundle, task: Task, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every token of a split, and the most likely next token at every place."""
    losses, predicted = [], []
    for batch in DataLoader(task.datasets[split], batch_size=task.measure_batch_size, collate_fn=task.collate):
        labels = batch.pop("labels")
        feed = complete({name: tensor.numpy() for name, tensor in batch.items()}, bundle.manifest.inputs)
        logits = torch.from_numpy(bundle.run(feed)["logits"])
        losses.append(task.metric.items(logits, labels))
        predicted.append(logits.argmax(-1).flatten())
    return torch.cat(losses), torch.cat(predicted)


def weight_bytes(path: Path) -> int:
    """Return the bytes of all weights of a graph."""
    tensors = onnx.load(path).graph.initializer
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in tensors)


def step_ratios(bundles: Mapping[str, Bundle], past: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return each precision's time for one token by float32's, and its milliseconds."""
    feeds = {name: make_inputs(bundle, 1, 1, past) for name, bundle in bundles.items()}
    seconds: dict[str, list[float]] = {name: [] for name in bundles}
    for number in range(-3, rounds):
        for name in list(bundles) if number % 2 else list(reversed(bundles)):
            started = time.process_time()
            for _ in range(10):
                bundles[name].session.run(None, feeds[name])
            if number >= 0:
                seconds[name].append((time.process_time() - started) / 10)
    return {
        name: (
            statistics.median(a / b for a, b in zip(times, seconds["fp32"], strict=True)),
            1e3 * statistics.median(times),
        )
        for name, times in seconds.items()
    }


def rows_of(
    model_name: str, bundles: Mapping[str, Bundle], past: int, rounds: int, task: Task | None, split: str
) -> list[dict[str, Any]]:
    ratios = step_ratios(bundles, past, rounds)
    base: tuple[torch.Tensor, torch.Tensor] | None = None
    rows: list[dict[str, Any]] = []
    sizes = {name: weight_bytes(bundle.folder / bundle.manifest.graph) for name, bundle in bundles.items()}
    for name, bundle in bundles.items():
        row: dict[str, Any] = {
            "model": model_name, "precision": name, "weight_bytes": sizes[name],
            "size_ratio": round(sizes[name] / sizes["fp32"], 3), "cached": past,
            "step_cpu_ms": round(ratios[name][1], 4), "step_ratio": round(ratios[name][0], 3),
            "split": "", "tokens": "", "loss": "", "loss_more": "", "perplexity_ratio": "", "agreement": "",
        }  # fmt: skip
        if task is not None:
            found = judged(bundle, task, split)
            base = base or found
            more = float(found[0].double().mean() - base[0].double().mean())
            row |= {
                "split": split, "tokens": len(found[0]), "loss": round(float(found[0].double().mean()), 5),
                "loss_more": round(more, 5), "perplexity_ratio": round(float(np.exp(more)), 4),
                "agreement": round(float((found[1] == base[1]).double().mean()), 4),
            }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def wide_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=768, num_hidden_layers=4, num_attention_heads=12, num_key_value_heads=4,
                         intermediate_size=2048, vocab_size=8000, max_position_embeddings=512)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("universal", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--wide", action="store_true", help="latency of a wider decoder as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    universal = Universal.open(args.universal)
    largest = extract(universal.model, get_elastic(universal.model).resolved.largest).eval()
    with tempfile.TemporaryDirectory() as folder:
        bundles = export_all(largest, Path(folder, "trained"))
        config = largest.config
        name = f"{config.model_type}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}"
        past = universal.task.input_shapes["input_ids"][1] - 16
        rows = rows_of(f"{name}, trained", bundles, past, args.rounds, universal.task, args.split)
        write_csv(args.output, rows)
        if args.wide:
            bundles = export_all(wide_llama(), Path(folder, "wide"))
            rows += rows_of("llama, 4 layers, hidden size 768, random", bundles, 64, args.rounds, None, args.split)
            write_csv(args.output, rows)


if __name__ == "__main__":
    main()
