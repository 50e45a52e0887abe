r"""Each granularity of the universal model against a model of that size trained alone for as many optimizer steps.

Iso-step and iso-data, not iso-FLOP: a universal step runs several subnets, and costs the sum of their FLOPs.
Test data is used once, by this benchmark, after all choices.

    python benchmarks/quality/granularities.py recipes/matformer.yaml \
        -o benchmarks/results/granularities_vit_digits.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.data import load_task
from elastic.families import FAMILIES
from elastic.nested import get_elastic
from elastic.pipeline import Universal, train
from elastic.pipeline.models import build_model
from elastic.recipe import Recipe, load_recipe, parse_recipe
from elastic.space import Subnet


def alone(recipe: Recipe, subnet: Subnet) -> Recipe:
    """The recipe of a stock model that has the size of a uniform subnet from the start."""
    data = recipe.model_dump(mode="json")
    family = FAMILIES[recipe.model.family]
    layer = subnet.kept_layers[0]
    info = get_elastic(build_model(recipe, load_task(recipe)))
    config = data["model"]["config"]
    config[family.layers_field] = len(subnet.kept_layers)
    config[family.ffn_field] = subnet.ffn[layer]
    if subnet.heads[layer] != info.dims.heads:
        config["head_dim"] = config["hidden_size"] // info.dims.heads
        config[family.heads_field] = subnet.heads[layer]
        if family.kv_heads_field:
            config[family.kv_heads_field] = subnet.heads[layer] // info.dims.heads_per_group
    data["space"], data["granularities"] = {"ffn": [1.0]}, {"alone": {}}
    data["training"]["sampler"], data["training"]["objective"] = {"name": "joint"}, {"name": "task"}
    return parse_recipe(data, "alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", help="validation while a recipe is being designed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for seed in range(args.seeds):
        recipe = load_recipe(args.recipe, [*args.overrides, f"seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            train(recipe, Path(folder) / "universal", progress_bar=False)
            universal = Universal.open(Path(folder) / "universal")
            for name, subnet in universal.granularities.items():
                train(alone(recipe, subnet), Path(folder) / name, progress_bar=False)
                single = Universal.open(Path(folder) / name)
                full = single.elastic.resolved.largest
                cost = universal.cost_model.cost(subnet)
                assert single.cost_model.cost(full).flops == cost.flops
                rows.append(
                    {
                        "seed": seed,
                        "granularity": name,
                        "flops": cost.flops,
                        "params": cost.params,
                        "split": args.split,
                        "metric": universal.task.metric.name,
                        "universal": universal.measure(subnet, args.split).value,
                        "alone": single.measure(full, args.split).value,
                    }
                )
                print(rows[-1], flush=True)
    write_csv(args.output, rows)
    for name in dict.fromkeys(row["granularity"] for row in rows):
        universal_mean, alone_mean = (
            statistics.mean(row[column] for row in rows if row["granularity"] == name)
            for column in ("universal", "alone")
        )
        print(f"{name}: universal {universal_mean:.2f}, alone {alone_mean:.2f}, gap {universal_mean - alone_mean:+.2f}")


if __name__ == "__main__":
    main()
