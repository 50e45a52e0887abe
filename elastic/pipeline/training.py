"""Trains the universal model of a recipe, from the first step to the folder."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

import elastic
from elastic.checkpoint import copy_companions, described_drop_order, save_checkpoint
from elastic.cost import CostModel
from elastic.data import Task, load_task, measure
from elastic.errors import CheckpointError, OutputExistsError, RecipeError, did_you_mean
from elastic.folder import check_output, new_folder
from elastic.nested import GateKey, get_elastic
from elastic.pipeline.card import write_card
from elastic.pipeline.methods import (
    frozen_teacher,
    make_auto_encoding,
    make_embedding_loss,
    make_objective,
    make_sampler,
    make_weights,
)
from elastic.pipeline.models import build_model, resolve_granularities
from elastic.pipeline.routing import expected_flops, trainer_class
from elastic.recipe import Recipe
from elastic.record import RECORD_NAME, CheckpointRecord, read_record
from elastic.selection import Measured, Quality
from elastic.space import Subnet
from elastic.training import RoutedTrainer

RECIPE_NAME = "recipe.json"
_OURS = ("output_dir", "seed", "data_seed", "resume_from_checkpoint")


def train(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    progress_bar: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Train the universal model of a recipe and write it to ``output``; return its metrics on validation data.

    While it runs, checkpoints lie in ``<output>.training``; ``output`` appears when all is done.

    Raises:
        RecipeError: if the recipe does not fit its data or model, or is not the one that is being resumed.
        OutputExistsError: if ``output`` exists, or an unfinished run lies beside it and ``resume`` is false.
    """
    check_output(output)
    work = output.parent / f"{output.name}.training"
    _check_resumable(work, recipe, resume)
    transformers.set_seed(recipe.seed)
    arguments = training_arguments(recipe, work, progress_bar=progress_bar)
    task = load_task(recipe)
    model = build_model(recipe, task)
    teacher = frozen_teacher(recipe, model)
    make_trainer = trainer_class(recipe, model, make_auto_encoding(recipe, task))
    granularities = resolve_granularities(recipe.granularities, get_elastic(model))
    sampler = make_sampler(recipe, model, task, granularities)
    objective = make_objective(recipe, has_teacher=teacher is not None)
    embedding_loss, weights = make_embedding_loss(recipe), make_weights(recipe, granularities)
    # Only now is anything written, by one process: a recipe that does not fit leaves no trace.
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.is_main_process:
        work.mkdir(parents=True, exist_ok=resume)
        (work / RECIPE_NAME).write_text(_described(recipe))
    trainer = make_trainer(
        model=model,
        args=arguments,
        train_dataset=task.datasets["train"],
        eval_dataset=task.datasets["validation"],
        data_collator=task.collate,
        compute_metrics=_compute_metrics(task),
        processing_class=task.tokenizer,
        sampler=sampler,
        objective=objective,
        teacher=teacher,
        same_width_teacher=recipe.training.objective.teacher == "same-width",
        embed=task.outputs if task.embeds else None,
        embedding_loss=embedding_loss,
        weights=weights,
        regularise_largest_only=recipe.training.regularise_largest_only,
        granularities=granularities,
        measure=measured_by(task, model),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=last_complete_checkpoint(work) if resume else None)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        record = CheckpointRecord(
            kind="universal",
            family=model.config.model_type,
            elastic_version=elastic.__version__,
            input_shapes={name: list(shape) for name, shape in task.input_shapes.items()},
            space=get_elastic(model).space.to_dict(),
            drop_order=described_drop_order(get_elastic(model)),
            granularities=recipe.granularities,
            ordering=_ordering_of(recipe),
            recipe=recipe.model_dump(mode="json"),
            training={
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "train_loss": trained.training_loss,
                "seconds": round(time.perf_counter() - started, 1),
                "log": _without_speed(trainer.state.log_history),
                "versions": versions(),
            },
        )
        usage = trainer.usage if isinstance(trainer, RoutedTrainer) else {}
        points = _measured(task, model, granularities, metrics, usage)
        with new_folder(output) as folder:
            save_checkpoint(model, record, folder)
            if recipe.model.pretrained is not None:
                copy_companions(recipe.model.pretrained, folder)
            if task.tokenizer is not None:
                task.tokenizer.save_pretrained(folder)
            write_card(folder, output.name, record, model, points)
        shutil.rmtree(work)
    return metrics


def _check_resumable(work: Path, recipe: Recipe, resume: bool) -> None:
    if not resume:
        if work.exists():
            raise OutputExistsError(f"an unfinished run lies at {work}; continue it with --resume, or remove it.")
        return
    if not (work / RECIPE_NAME).is_file():
        raise CheckpointError(f"there is no unfinished run at {work}; start it without --resume.")
    if (work / RECIPE_NAME).read_text() != _described(recipe):
        raise RecipeError(f"the unfinished run at {work} was started with another recipe; resume it with that one.")


def _described(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json"), indent=2)


def last_complete_checkpoint(work: Path) -> str | None:
    """Return the newest checkpoint that was written whole, or None: a killed run may leave half a one."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            # The Trainer writes this file last.
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return str(path)
    return None


def training_arguments(recipe: Recipe, work: Path, *, progress_bar: bool = True) -> TrainingArguments:
    """Return the Trainer's arguments of a recipe.

    Raises:
        RecipeError: if one is unknown (suggests the right one), is not the recipe's to set, or has a bad value.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    given, kinds = recipe.training.arguments, typing.get_type_hints(TrainingArguments)
    for key, value in given.items():
        if key not in known:
            raise RecipeError(f"unknown key 'training.arguments.{key}'{did_you_mean(key, known)}")
        if key in _OURS:
            raise RecipeError(f"training.arguments.{key} is set by Elastic; leave it out (the recipe has a 'seed').")
        _check_number(key, value, kinds[key])
    defaults = {"report_to": "none", "save_total_limit": 2, "disable_tqdm": not progress_bar,
                "remove_unused_columns": False}  # fmt: skip
    try:
        arguments = TrainingArguments(output_dir=str(work), seed=recipe.seed, **{**defaults, **given})
        get_reporting_integration_callbacks(arguments.report_to)
    except (ImportError, TypeError, ValueError) as error:
        raise RecipeError(f"training.arguments: {error}") from None
    return arguments


_SMALLEST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0, "learning_rate": 0, "weight_decay": 0, "warmup_steps": 0, "max_grad_norm": 0,
}  # fmt: skip


def _check_number(key: str, value: Any, kind: Any) -> None:
    """Check what the Trainer would only find out, in other words, after the data and the model have been loaded."""
    if float in (kinds := typing.get_args(kind) or (kind,)):
        kinds = (*kinds, int)
    elif int not in kinds:
        return
    wanted = "a number" if float in kinds else "a whole number"
    if not isinstance(value, kinds) and not (isinstance(value, float) and value.is_integer()):
        raise RecipeError(f"training.arguments.{key} is {value!r}, and must be {wanted}.")
    smallest = _SMALLEST.get(key)
    if value is not None and smallest is not None and not value >= smallest:
        raise RecipeError(f"training.arguments.{key} is {value}, and must be {wanted} of at least {smallest}.")


def measured_by(task: Task, model: PreTrainedModel) -> Callable[[], dict[str, float]] | None:
    """Return what measures the active subnet on validation data, where the Trainer's own evaluation cannot."""
    if not task.embeds:
        return None
    return lambda: {task.metric.name: measure(model, task, "validation")[0]}


def _measured(
    task: Task,
    model: PreTrainedModel,
    granularities: Mapping[str, Subnet],
    metrics: Mapping[str, float],
    usage: Mapping[Subnet, Mapping[GateKey, float]],
) -> list[Measured]:
    """Return the granularities and the largest subnet with the quality that the Trainer found.

    Where routers ran (``usage``), the cost is what they let compute: the mean over the examples.
    """
    costs, metric = CostModel.of(model, task.input_shapes), task.metric
    count = len(task.datasets["validation"])
    points = {}
    for name, subnet in {**granularities, "": get_elastic(model).resolved.largest}.items():
        value = metrics.get(f"eval_{name}_{metric.name}" if name else f"eval_{metric.name}")
        if value is not None and subnet not in points:
            quality = Quality(metric.name, value, metric.higher_is_better, "validation", count)
            cost = costs.cost(subnet)
            if gates := usage.get(subnet):
                cost = dataclasses.replace(cost, flops=expected_flops(costs, subnet, gates))
                name = f"{name or subnet.describe()}, routed ({sum(gates.values()) / len(gates):.0%} of gates on)"
            points[subnet] = Measured(subnet, cost, quality, "granularity", name)
    return sorted(points.values(), key=lambda point: -point.cost.flops)


def _ordering_of(recipe: Recipe) -> dict[str, Any] | None:
    """How the units of the model that training started from had been ordered."""
    start = recipe.model.pretrained
    if start is None or not (Path(start) / RECORD_NAME).is_file():
        return None
    return read_record(Path(start)).ordering


def _compute_metrics(task: Task) -> Callable[[Any], dict[str, float]] | None:
    if task.metric.name == "loss" or task.embeds:
        return None

    def compute(prediction: Any) -> dict[str, float]:
        items = task.metric.items(torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids))
        return {task.metric.name: task.metric.value(items)}

    return compute


def _without_speed(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second", "_time"))} for entry in log]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "elastic": elastic.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
