"""Heals an extracted model: a short training with the model that it was cut from as frozen teacher."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from elastic.checkpoint import copy_companions, load, save_checkpoint
from elastic.data import Task, load_task, measure
from elastic.data.embedder import embed, load_embedder
from elastic.errors import CheckpointError, ElasticError, RecipeError
from elastic.families import get_family
from elastic.folder import check_output, new_folder
from elastic.ordering import permute_hidden
from elastic.pipeline.card import write_card
from elastic.pipeline.methods import make_embedding_loss, make_objective
from elastic.pipeline.models import AUTO_CLASSES, load_pretrained
from elastic.pipeline.training import training_arguments, versions
from elastic.recipe import Recipe
from elastic.record import RECORD_NAME, CheckpointRecord, read_record
from elastic.selection import Quality
from elastic.space import Subnet
from elastic.training import ElasticTrainer

PATIENCE = 2
"""Evaluations without a better one after which healing stops."""


@dataclass(frozen=True)
class Healing:
    """What healing won, on held-out data."""

    before: Quality
    after: Quality
    record: CheckpointRecord


class _KeepBest(TrainerCallback):
    """Keeps the weights of the best evaluation, and stops when it lies too far back.

    In memory, because an extracted model may not load as a stock checkpoint does.
    """

    def __init__(self, model: PreTrainedModel, start: Quality) -> None:
        self.model, self.best, self.best_step = model, start, 0
        self._weights = self._copy()
        self._worse = 0

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare, keep or count."""
        value = (metrics or {})[f"eval_{self.best.metric}"]
        best = self.best
        now = Quality(best.metric, value, best.higher_is_better, best.split, best.num_examples)
        if now.better_than(best):
            self.best, self.best_step, self._worse = now, state.global_step, 0
            self._weights = self._copy()
            return
        self._worse += 1
        control.should_training_stop = control.should_training_stop or self._worse >= PATIENCE

    def restore(self) -> None:
        """Load the best weights."""
        self.model.load_state_dict(self._weights)


def heal(
    folder: Path,
    recipe: Recipe,
    output: Path,
    *,
    teacher: str | None = None,
    progress_bar: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> Healing:
    """Train an extracted model by its teacher until held-out quality stops rising, and write the best of it.

    Args:
        folder: the extracted model.
        recipe: data, objective and training arguments; its space and sampler do not matter here.
        output: folder to write; it must not exist.
        teacher: folder of the universal model, or any model with the same outputs; by default the recipe's
            ``model.pretrained``.
        progress_bar: whether progress is drawn.
        callbacks: of the Trainer.

    Raises:
        ElasticError: if several processes were started.
        CheckpointError: if ``folder`` is not an extracted model.
        RecipeError: if there is no teacher, or the recipe does not fit.
        OutputExistsError: if ``output`` exists.
    """
    check_output(output)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ElasticError("healing is short, and runs in one process; start it without a launcher of several.")
    record = read_record(folder)
    if record.kind != "extracted" or record.subnet is None:
        raise CheckpointError(f"{folder} is a universal model; train it on with `elastic train`.")
    name = teacher or recipe.model.pretrained
    if name is None:
        raise RecipeError("healing needs a teacher; name the universal model with --teacher.")
    transformers.set_seed(recipe.seed)
    task = load_task(recipe, folder)
    model, taught_by = load(folder), _load_teacher(name, recipe, task, record)
    # The head behind the extracted model knows its own widths alone.
    head = load_embedder(name, None)[1] if task.embeds else None
    before = _quality(model, task)
    keep_best = _KeepBest(model, before)
    settings = _with_distillation(recipe)
    with new_folder(output) as written, tempfile.TemporaryDirectory() as scratch:
        trainer = ElasticTrainer(
            model=model,
            args=training_arguments(settings, Path(scratch), progress_bar=progress_bar),
            train_dataset=task.datasets["train"],
            eval_dataset=task.datasets["validation"],
            data_collator=task.collate,
            processing_class=task.tokenizer,
            subnet=Subnet.from_dict(record.subnet),
            objective=make_objective(settings, has_teacher=True),
            teacher=taught_by,
            embed=task.outputs if task.embeds else None,
            teacher_embed=None if head is None else functools.partial(embed, head),
            embedding_loss=make_embedding_loss(settings),
            measure=lambda: {task.metric.name: measure(model, task, "validation")[0]},
            callbacks=[keep_best, *callbacks],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        if trainer.state.global_step not in (keep_best.best_step, _last_evaluated(trainer)):
            trainer.evaluate()
        keep_best.restore()
        healed = record.model_copy(
            update={
                "quality": keep_best.best.to_dict(),
                "test_quality": _test_quality(model, task),
                "precision": _without_quality(record.precision),
                "healing": {
                    "teacher": Path(name).name,
                    "before": before.to_dict(),
                    "steps": trainer.state.global_step,
                    "best_step": keep_best.best_step,
                    "seconds": round(time.perf_counter() - started, 1),
                    "versions": versions(),
                },
            }
        )
        save_checkpoint(model, healed, written)
        copy_companions(folder, written)
        write_card(written, output.name, healed, model)
    return Healing(before, keep_best.best, healed)


def _last_evaluated(trainer: ElasticTrainer) -> int:
    evaluated = [entry["step"] for entry in trainer.state.log_history if any(k.startswith("eval_") for k in entry)]
    return int(max(evaluated, default=-1))


def _with_distillation(recipe: Recipe) -> Recipe:
    """The recipe with evaluations while it trains, no checkpoints, and the teacher's objective."""
    arguments = {"eval_strategy": "epoch", **recipe.training.arguments, "save_strategy": "no"}
    if arguments["eval_strategy"] == "no":
        arguments["eval_strategy"] = "epoch"
    objective = recipe.training.objective
    name = "similarity" if recipe.task == "sentence-similarity" else "distillation"
    objective = objective.model_copy(update={"teacher": "original", "name": name})
    training = recipe.training.model_copy(update={"arguments": arguments, "objective": objective})
    return recipe.model_copy(update={"training": training})


def _without_quality(precision: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how a checkpoint is to be exported; what its quality was so is that of the weights before."""
    return None if precision is None else {name: value for name, value in precision.items() if name != "quality"}


def _load_teacher(name: str, recipe: Recipe, task: Task, record: CheckpointRecord) -> PreTrainedModel:
    of_elastic = (Path(name) / RECORD_NAME).is_file()
    teacher = load(name) if of_elastic else load_pretrained(AUTO_CLASSES[recipe.task], name, {}, task, new_head=False)
    dims = get_family(teacher.config).dims(teacher.config)
    universal = record.universal_dims or dims
    alike = (dims.num_layers, dims.hidden) == (universal.num_layers, universal.hidden)
    if recipe.training.objective.hidden_weight and not alike:
        raise RecipeError(
            "training.objective.hidden_weight compares hidden states, and those of the teacher "
            f"'{name}' are not those of the universal model ({dims.num_layers} layers of {dims.hidden}, not "
            f"{universal.num_layers} of {universal.hidden}); set it to 0, or name the universal model with --teacher."
        )
    order = (record.ordering or {}).get("hidden_order")
    if order and alike and not of_elastic:
        # Its hidden states and embeddings are compared with those of a model whose stream was ordered.
        permute_hidden(teacher, order)
    return teacher


def _quality(model: PreTrainedModel, task: Task, split: str = "validation") -> Quality:
    value, count = measure(model, task, split)
    return Quality(task.metric.name, value, task.metric.higher_is_better, split, count)


def _test_quality(model: PreTrainedModel, task: Task) -> dict[str, Any] | None:
    return _quality(model, task, "test").to_dict() if "test" in task.splits else None
