"""Predicted against measured latency of subnets that a latency table has not seen, on ONNX Runtime.

A random ViT or BERT (MiniLM's sizes by default) is cut into subnets that vary along one axis each, which make the
table, and into random per-layer ones, which are held out. All are members of one family (graphs over one file of
weights), and are measured in turns in one process, by its CPU time: with one thread that is what a call takes on an
idle machine, and a busy one disturbs it less. FLOPs as a predictor are scaled by the largest subnet's latency.

    python benchmarks/speed/latency_table.py -o benchmarks/results/latency_table_bert.csv
    python benchmarks/speed/latency_table.py --model vit -o benchmarks/results/latency_table_vit.csv

"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic import CostModel, LatencyTable, SearchSpace, Subnet, make_elastic
from elastic.cost import LatencyModel
from elastic.export import NamedSubnet, export_family, profile_bundles
from elastic.nested import get_elastic
from elastic.space import ResolvedSpace

SEQUENCE = 64
SPACE = SearchSpace(ffn=[0.25, 0.5, 0.75, 1.0], heads=[1 / 3, 2 / 3, 1.0], layers=[2, 4, 6], attention=[4, 5, 6])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", choices=["bert", "vit"], default="bert")
    parser.add_argument("--held-out", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--family", type=Path, help="keep the family there, or measure again the one that is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, shapes = _model(args.model)
    universal = make_elastic(model.eval(), SPACE)
    space = get_elastic(universal).resolved
    seen, unseen = _one_axis_each(space), _held_out(space, args.held_out)
    members = [NamedSubnet(f"subnet{index}", subnet) for index, subnet in enumerate([*seen, *unseen])]
    with tempfile.TemporaryDirectory() as folder:
        family = args.family or Path(folder, "family")
        if not family.exists():
            export_family(model, members, family)
        sequences = [SEQUENCE] if args.model == "bert" else None
        path = Path(folder, "table.json")
        with mock.patch("time.perf_counter_ns", time.process_time_ns):
            profile_bundles([family], path, sequences=sequences, threads=1, rounds=args.rounds)
        table = LatencyTable.read(path)
    known = table.model_copy(update={"measured": tuple(row for row in table.measured if row.subnet in set(seen))})
    latency = LatencyModel.fit(known, shapes)
    costs = CostModel.of(universal, shapes)
    rows = [_row(args.model, row, seen, costs, latency) for row in table.measured]
    held_out = [row for row in rows if row["part"] == "held out"]
    predicted, measured = (np.array([row[name] for row in held_out]) for name in ("predicted_ms", "measured_ms"))
    by_flops = np.array([row["by_flops_ms"] for row in held_out])
    about = {
        "device": table.device.name,
        "rounds": args.rounds,
        "left_out_error": latency.errors["latency"],
        "mape": np.mean(np.abs(predicted / measured - 1)),
        "rank_correlation": spearmanr(predicted, measured).statistic,
        "mape_by_flops": np.mean(np.abs(by_flops / measured - 1)),
        "rank_correlation_by_flops": spearmanr(by_flops, measured).statistic,
    }
    write_csv(args.output, [{**row, **about} for row in rows])
    print({name: value if isinstance(value, str) else round(float(value), 4) for name, value in about.items()})


def _model(name: str) -> tuple[PreTrainedModel, dict[str, tuple[int, ...]]]:
    if name == "vit":
        config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768)
        return ViTModel(config), {"pixel_values": (1, 3, 224, 224)}
    config = BertConfig(vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                        intermediate_size=1536)  # fmt: skip
    return BertModel(config), {"input_ids": (1, SEQUENCE)}


def _one_axis_each(space: ResolvedSpace) -> list[Subnet]:
    """The largest, and what differs from it along one axis: what a user would profile."""
    axes = ("ffn", "heads", "layers", "attention")
    found = [space.uniform(**{axis: choice}) for axis in axes for choice in reversed(getattr(space, axis))]
    return list(dict.fromkeys(found))


def _held_out(space: ResolvedSpace, count: int) -> list[Subnet]:
    rng = random.Random(0)
    found: dict[Subnet, None] = {}
    while len(found) < count:
        subnet = space.sample(rng)
        if subnet not in _one_axis_each(space):
            found[subnet] = None
    return list(found)


def _row(model: str, row: Any, seen: list[Subnet], costs: CostModel, latency: LatencyModel) -> dict[str, Any]:
    largest = next(one for one in latency.table.measured if one.subnet == seen[0])
    flops = costs.cost(row.subnet).flops
    return {
        "model": model,
        "part": "table" if row.subnet in seen else "held out",
        "subnet": row.subnet.describe(),
        "flops": flops,
        "measured_ms": row.median_ms,
        "p10_ms": row.p10_ms,
        "p90_ms": row.p90_ms,
        "predicted_ms": latency.add_to(costs.cost(row.subnet), row.subnet).latency_ms,
        "by_flops_ms": largest.median_ms * flops / costs.cost(seen[0]).flops,
    }


if __name__ == "__main__":
    main()
