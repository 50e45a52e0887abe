"""ONNX Runtime latency of half-FLOPs subnets against the universal model's, in turns in one process.

A random ViT of ViT-Ti's sizes, cut to half of its FLOPs in three ways; and, if given, the demo's trained model.

    python benchmarks/speed/onnx_latency.py -o benchmarks/results/onnx_latency.csv --bundles demo/full demo/bundle

where demo/full is the largest subnet of demo/universal, extracted with --subnet and exported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic import CostModel, SearchSpace, extract, make_elastic
from elastic.export import compare_latency, export_onnx
from elastic.export.bundle import read_bundle
from elastic.nested import get_elastic
from elastic.selection import default_input_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundles", type=Path, nargs=2, help="two more to compare: the universal and a cut one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    space = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[1, 2, 3], layers=[0.5, 0.75, 1.0])
    universal = make_elastic(ViTForImageClassification(config).eval(), space)
    resolved = get_elastic(universal).resolved
    cost_model = CostModel.of(universal, default_input_shapes(universal))
    largest = cost_model.cost(resolved.largest).flops
    subnets = {
        "universal": resolved.largest,
        "half of the layers": resolved.uniform(layers=6),
        "9 layers, 2 heads, half of the FFN": resolved.uniform(layers=9, heads=2, ffn=384),
        "1 head, half of the FFN": resolved.uniform(heads=1, ffn=384),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = []
        for name, subnet in subnets.items():
            bundles.append(Path(folder) / name)
            export_onnx(extract(universal, subnet), bundles[-1])
        report = compare_latency(bundles, threads=args.threads, rounds=args.rounds)
    for (name, subnet), bench, ratio in zip(subnets.items(), report.bundles, report.ratios, strict=True):
        flops = cost_model.cost(subnet).flops
        rows.append({"model": f"ViT-Ti: {name}", "flops_ratio": flops / largest, "latency_ratio": ratio,
                     "median_ms": bench.median_ms})  # fmt: skip
    for batch in (1, 64) if args.bundles else ():
        report = compare_latency(args.bundles, batch=batch, threads=args.threads, rounds=10 * args.rounds)
        flops = [read_bundle(path).cost["flops"] for path in args.bundles]
        for path, cost, bench, ratio in zip(args.bundles, flops, report.bundles, report.ratios, strict=True):
            name = f"digits, batch {batch}: {path.name}"
            rows.append({"model": name, "flops_ratio": cost / flops[0], "latency_ratio": ratio,
                         "median_ms": bench.median_ms})  # fmt: skip
    write_csv(args.output, rows)
    for row in rows:
        print(f"{row['model']}: FLOPs {row['flops_ratio']:.3f}, latency {row['latency_ratio']:.3f}")


if __name__ == "__main__":
    main()
