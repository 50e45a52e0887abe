r"""What each method promises of its own axis, measured on held-out data.

    python benchmarks/quality/methods.py layerdrop -o benchmarks/results/layerdrop_vit_digits.csv
    python benchmarks/quality/methods.py sortednet -o benchmarks/results/sortednet_vit_digits.csv
    python benchmarks/quality/methods.py universal -o benchmarks/results/universal_vit_digits.csv

- layerdrop: the model with its layers left out one by one, evenly spaced, without fine-tuning; the same model trained
  without LayerDrop beside it.
- sortednet: at least 160 subnets of one run, and their mean as a share of the full model.
- universal: all axes in one run, against a run for each axis alone with the same sampler, objective and steps, over the
  choices of that axis.

``--variant cifar10 --set data.path=FOLDER`` for that data. Test data is used once, after all choices.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import ROOT, quality_arguments, write_csv

from elastic.pipeline import Universal, train
from elastic.recipe import Recipe, load_recipe, parse_recipe

Row = dict[str, Any]
NUM_SORTED = 200


@contextmanager
def trained(recipe: Recipe) -> Iterator[Universal]:
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "universal", progress_bar=False)
        yield Universal.open(Path(folder) / "universal")


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other sections; those of ``training`` keep what is not named."""
    data = recipe.model_dump(mode="json")
    data["training"] |= changes.pop("training", {})
    return parse_recipe({**data, **changes}, "changed")


def along(universal: Universal, axis: str, split: str) -> list[Row]:
    """Quality at every choice of one axis, all others at their largest."""
    space = universal.elastic.resolved
    points = [(choice, space.uniform(**{axis: choice})) for choice in getattr(space, axis)]
    return [
        {
            "axis": axis,
            "choice": choice,
            "flops": universal.cost_model.cost(subnet).flops,
            "quality": universal.measure(subnet, split).value,
        }
        for choice, subnet in points
    ]


def layerdrop(recipe: Recipe, split: str) -> list[Row]:
    without = changed(recipe, granularities={"XL": {}}, training={"sampler": {"name": "joint"}})
    rows = []
    for kind, settings in (("with LayerDrop", recipe), ("without", without)):
        with trained(settings) as universal:
            found = along(universal, "layers", split)
        full = found[-1]["quality"]
        rows += [{"run": kind, **row, "kept": round(row["quality"] / full, 4)} for row in found]
    return rows


def sortednet(recipe: Recipe, split: str) -> list[Row]:
    with trained(recipe) as universal:
        space, rng = universal.elastic.resolved, random.Random(0)
        subnets = dict.fromkeys([*space.uniform_subnets(), *(space.sample(rng) for _ in range(2 * NUM_SORTED))])
        full = universal.measure(space.largest, split).value
        return [
            {
                "run": "sortednet",
                "subnet": subnet.describe(),
                "uniform": subnet.is_uniform,
                "flops": universal.cost_model.cost(subnet).flops,
                "quality": (quality := universal.measure(subnet, split).value),
                "kept": round(quality / full, 4),
            }
            for subnet in list(subnets)[:NUM_SORTED]
        ]


def universal(recipe: Recipe, split: str) -> list[Row]:
    rows = []
    with trained(recipe) as model:
        together = {axis: along(model, axis, split) for axis in recipe.space}
    for axis, of_all in together.items():
        ends = {"smallest": {axis: recipe.space[axis][0]}, "largest": {}}
        with trained(changed(recipe, space={axis: recipe.space[axis]}, granularities=ends)) as model:
            of_one = along(model, axis, split)
        rows += [
            {"run": "universal", **a, "single_axis": b["quality"], "gap": round(a["quality"] - b["quality"], 3)}
            for a, b in zip(of_all, of_one, strict=True)
        ]
    return rows


METHODS = {"layerdrop": layerdrop, "sortednet": sortednet, "universal": universal}


def summary(method: str, rows: list[Row]) -> None:
    """Print means over seeds."""
    keys = {"layerdrop": ("run", "choice"), "sortednet": ("run",), "universal": ("axis", "choice")}[method]
    column = "gap" if method == "universal" else "kept"
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        values = [row[column] for row in rows if tuple(row[name] for name in keys) == key]
        print(*key, column, f"{statistics.mean(values):.4f}", f"({min(values):.4f} to {max(values):.4f})")


def main() -> None:
    parser = quality_arguments(__doc__)
    parser.add_argument("method", choices=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    rows: list[Row] = []
    for seed in args.seeds:
        path = ROOT / "recipes" / f"{args.method}.yaml"
        recipe = load_recipe(path, [*args.overrides, f"seed={seed}"], variant=args.variant)
        found = METHODS[args.method](recipe, args.split)
        rows += [{"seed": seed, "split": args.split, **row} for row in found]
        write_csv(args.output, rows)
        summary(args.method, rows)


if __name__ == "__main__":
    main()
