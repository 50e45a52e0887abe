r"""Each granularity of the universal model against a model of that size trained alone.

What the universal training costs, in FLOPs as a share of training all of them, is printed and stored. A recipe whose
steps run all granularities compares step for step; one whose steps run one or two can have more steps for less cost:
``--alone-steps`` says how many a model alone has (by default as many). Test data is used once, by this benchmark,
after all choices.

    python benchmarks/quality/granularities.py recipes/matformer.yaml \
        -o benchmarks/results/granularities_vit_digits.csv
    python benchmarks/quality/granularities.py recipes/matformer.yaml --variant cifar10 \
        --set data.path=$ELASTIC_DATA/cifar10 -o benchmarks/results/granularities_vit_cifar10.csv

Rows of kind "mix" are subnets between two granularities, by MatFormer's rule (the first layers at the smaller width),
with what the straight line between the two would give at their FLOPs; those of kind "search" are what `elastic search`
finds on validation data within the same FLOPs. Agreement is how often the largest predicts the
same; of models trained alone, the largest trained alone.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import quality_arguments, write_csv

from elastic.cost import Budget, CostModel
from elastic.data import Task, load_task
from elastic.families import FAMILIES
from elastic.nested import active, evaluating, get_elastic
from elastic.pipeline import Universal, train
from elastic.pipeline.methods import make_sampler
from elastic.pipeline.models import build_model
from elastic.recipe import Recipe, load_recipe, parse_recipe
from elastic.selection import search
from elastic.space import Subnet

Row = dict[str, Any]


def alone(recipe: Recipe, subnet: Subnet, steps: int) -> Recipe:
    """The recipe of a stock model that has the size of a uniform subnet from the start."""
    data = recipe.model_dump(mode="json")
    family = FAMILIES[recipe.model.family]
    layer = subnet.kept_layers[0]
    info = get_elastic(build_model(recipe, load_task(recipe)))
    config = data["model"]["config"]
    config[family.layers_field] = len(subnet.kept_layers)
    config[family.ffn_field] = subnet.ffn[layer]
    if subnet.heads[layer] != info.dims.heads:
        config["head_dim"] = info.dims.hidden // info.dims.heads
        config[family.heads_field] = subnet.heads[layer]
        if family.kv_heads_field:
            config[family.kv_heads_field] = subnet.heads[layer] // info.dims.heads_per_group
    data["space"], data["granularities"] = {"ffn": [1.0]}, {"alone": {}}
    data["training"]["sampler"], data["training"]["objective"] = {"name": "joint"}, {"name": "task"}
    data["training"]["arguments"]["max_steps"] = steps
    return parse_recipe(data, "alone")


def training_cost(recipe: Recipe, universal: Universal, alone_steps: int) -> float:
    """FLOPs of the universal training by those of training every granularity, teachers' passes included."""
    task, costs = universal.task, universal.cost_model
    sampler = make_sampler(recipe, universal.model, task, universal.granularities)
    steps = range(recipe.training.arguments["max_steps"])
    spent = sum(costs.cost(subnet).flops for step in steps for subnet in sampler(step, 0))
    return spent / sum(alone_steps * costs.cost(subnet).flops for subnet in universal.granularities.values())


def predictions(model: PreTrainedModel, task: Task, split: str) -> torch.Tensor:
    """The most likely class, or the most likely next token at every place."""
    found = []
    with torch.inference_mode(), evaluating(model):
        for batch in DataLoader(task.datasets[split], batch_size=task.measure_batch_size, collate_fn=task.collate):
            batch.pop("labels")
            found.append(task.outputs(model(**batch), batch).argmax(-1).flatten())
    return torch.cat(found)


def mixtures(universal: Universal) -> dict[str, tuple[Subnet, str, str]]:
    """Half of the layers at one granularity, half at the next, for neighbours that differ in FFN width alone."""
    found = {}
    named = sorted(universal.granularities.items(), key=lambda item: universal.cost_model.cost(item[1]).flops)
    for (low, small), (high, large) in itertools.pairwise(named):
        if small.heads == large.heads and all(small.ffn):
            half = small.num_layers // 2
            found[f"{low}+{high}"] = (Subnet((*small.ffn[:half], *large.ffn[half:]), small.heads), low, high)
    return found


def trained(recipe: Recipe, folder: Path) -> Universal:
    """Train by a recipe into a folder, unless it is there from an earlier run."""
    if not folder.exists():
        train(recipe, folder, resume=folder.with_name(f"{folder.name}.training").exists(), progress_bar=False)
    return Universal.open(folder)


def compare(recipe: Recipe, alone_steps: int, split: str, folder: Path) -> list[Row]:
    """Train the universal model and every granularity alone, and measure all of them."""
    universal = trained(recipe, folder / "universal")
    task, costs = universal.task, universal.cost_model
    share = training_cost(recipe, universal, alone_steps)
    rows, predicted = [], {}
    for name, subnet in universal.granularities.items():
        single = trained(alone(recipe, subnet, alone_steps), folder / name)
        full = single.elastic.resolved.largest
        cost = costs.cost(subnet)
        assert CostModel.of(single.model, universal.input_shapes).cost(full).flops == cost.flops
        with active(universal.model, subnet):
            predicted[name] = (predictions(universal.model, task, split), predictions(single.model, task, split))
        rows.append({
            "seed": recipe.seed, "kind": "granularity", "granularity": name, "flops": cost.flops,
            "params": cost.params, "split": split, "metric": task.metric.name,
            "universal": universal.measure(subnet, split).value, "alone": single.measure(full, split).value,
            "steps": recipe.training.arguments["max_steps"], "alone_steps": alone_steps,
            "training_cost": round(share, 3),
        })  # fmt: skip
    largest = max(rows, key=lambda row: row["flops"])["granularity"]
    for row in rows:
        for index, kind in enumerate(("universal", "alone")):
            agree = predicted[row["granularity"]][index] == predicted[largest][index]
            row[f"agreement_{kind}"] = round(100 * float(agree.float().mean()), 2)
    values = {row["granularity"]: row for row in rows}
    between = [("mix", name, *mixture) for name, mixture in mixtures(universal).items()]
    for _, name, rule, low, high in tuple(between):
        budget = Budget(flops=costs.cost(rule).flops)
        found = search(universal.model, budget, universal.measure, cost_model=costs)
        between.append(("search", name, found.best.subnet, low, high))
    for kind, name, subnet, low, high in between:
        cost = costs.cost(subnet)
        ends = values[low], values[high]
        place = (cost.flops - ends[0]["flops"]) / (ends[1]["flops"] - ends[0]["flops"])
        line = ends[0]["universal"] + place * (ends[1]["universal"] - ends[0]["universal"])
        rows.append({**ends[0], "kind": kind, "granularity": name, "flops": cost.flops, "params": cost.params,
                     "universal": universal.measure(subnet, split).value, "alone": line, "agreement_universal": "",
                     "agreement_alone": ""})  # fmt: skip
    return rows


def main() -> None:
    parser = quality_arguments(__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--alone-steps", type=int, help="of a model alone; by default those of the recipe")
    parser.add_argument("--models", type=Path, help="folder to keep the trained models in; those in it are not trained")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    rows: list[Row] = []
    for seed in args.seeds:
        recipe = load_recipe(args.recipe, [*args.overrides, f"seed={seed}"], variant=args.variant)
        alone_steps = args.alone_steps or recipe.training.arguments["max_steps"]
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.models or Path(temporary)) / str(seed)
            rows += compare(recipe, alone_steps, args.split, folder)
        write_csv(args.output, rows)
        print(*rows, sep="\n", flush=True)
    print(f"The universal training costs {rows[0]['training_cost']:.3f} of training all granularities.")
    for kind, name in dict.fromkeys((row["kind"], row["granularity"]) for row in rows):
        same = [row for row in rows if (row["kind"], row["granularity"]) == (kind, name)]
        ours, theirs = (statistics.mean(row[column] for row in same) for column in ("universal", "alone"))
        what = "alone" if kind == "granularity" else "line"
        gap, ratio = ours - theirs, ours / theirs
        print(f"{kind} {name}: universal {ours:.3f}, {what} {theirs:.3f}, gap {gap:+.3f}, ratio {ratio:.4f}")


if __name__ == "__main__":
    main()
