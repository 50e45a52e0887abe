"""The stations from a recipe to an extracted checkpoint, as the command line runs them."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

import elastic
from elastic.checkpoint import CheckpointRecord, load, read_record, save_checkpoint
from elastic.cost import CostModel, InputShapes
from elastic.data import Task, load_task, measure
from elastic.errors import CheckpointError, OutputExistsError, RecipeError, did_you_mean
from elastic.extraction import TOLERANCE, extract, is_portable, sample_inputs, verify_extraction
from elastic.families import FAMILIES
from elastic.folder import check_output, new_folder
from elastic.nested import Elastic, active, get_elastic, make_elastic
from elastic.recipe import Recipe, parse_recipe
from elastic.selection import Measured, Quality
from elastic.space import SearchSpace, Subnet
from elastic.training import ElasticTrainer, InPlaceDistillation, Joint, Objective, Sampler, Sandwich, TaskLoss, Uniform

_AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "causal-lm": AutoModelForCausalLM,
}
RECIPE_NAME = "recipe.json"
_OURS = ("output_dir", "seed", "data_seed", "resume_from_checkpoint")


# Training


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
    granularities = resolve_granularities(recipe, get_elastic(model))
    sampler = _sampler(recipe, get_elastic(model), list(granularities.values()))
    objective = _objective(recipe)
    # Only now is anything written, by one process: a recipe that does not fit leaves no trace.
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.is_main_process:
        work.mkdir(parents=True, exist_ok=resume)
        (work / RECIPE_NAME).write_text(_described(recipe))
    trainer = ElasticTrainer(
        model=model,
        args=arguments,
        train_dataset=task.datasets["train"],
        eval_dataset=task.datasets["validation"],
        data_collator=default_data_collator,
        compute_metrics=_compute_metrics(task),
        processing_class=task.tokenizer,
        sampler=sampler,
        objective=objective,
        granularities=granularities,
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
            space=recipe.space,
            granularities=recipe.granularities,
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
        with new_folder(output) as folder:
            save_checkpoint(model, record, folder)
            if task.tokenizer is not None:
                task.tokenizer.save_pretrained(folder)
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


def build_model(recipe: Recipe, task: Task) -> PreTrainedModel:
    """Build or load the model of a recipe, and make it elastic.

    Raises:
        RecipeError: if neither or both of ``family`` and ``pretrained`` are given, or a configuration key is unknown.
        FamilyError: if the architecture is not supported.
        SpaceError: if the space does not fit the model.
    """
    section = recipe.model
    auto_class = _AUTO_CLASSES[recipe.task]
    if (section.family is None) == (section.pretrained is None):
        raise RecipeError("the recipe's model section needs either 'family' or 'pretrained'.")
    if section.pretrained is not None:
        model = _load_pretrained(auto_class, section.pretrained, section.config, task)
    else:
        if section.family not in FAMILIES:
            raise RecipeError(f"model.family is '{section.family}'{did_you_mean(str(section.family), FAMILIES)}")
        known = {*AutoConfig.for_model(section.family).to_dict(), "head_dim", "attn_implementation"}
        for key in section.config:
            if key not in known:
                raise RecipeError(f"unknown key 'model.config.{key}'{did_you_mean(key, known)}")
        try:
            config = AutoConfig.for_model(section.family, **{**task.model_config, **section.config})
            model = auto_class.from_config(config)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model.config is not one of a {section.family} model: {error}") from None
        except Exception as error:
            if type(error).__module__.startswith("huggingface_hub"):
                raise RecipeError(f"model.config is not one of a {section.family} model: {error}") from None
            raise
    return make_elastic(model, SearchSpace.from_dict(recipe.space))  # type: ignore[no-any-return]


def _load_pretrained(auto_class: Any, name: str, changes: Mapping[str, Any], task: Task) -> PreTrainedModel:
    """Load a model that was trained before; only its head may be new, for other labels."""
    labels = {key: task.model_config[key] for key in ("num_labels",) if key in task.model_config}
    try:
        model, loading = auto_class.from_pretrained(
            name, **{**labels, **changes}, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"the model '{name}' cannot be loaded: {error}") from None
    body = f"{model.base_model_prefix}."
    foreign = sorted(key for key, *_ in loading["mismatched_keys"] if key.startswith(body))
    if foreign or any(key.startswith(body) for key in loading["missing_keys"]):
        wrong = (foreign or sorted(loading["missing_keys"]))[0]
        raise RecipeError(
            f"the weights of '{name}' do not fit its configuration: '{wrong}' is missing or of another size."
        )
    for key in ("image_size", "num_channels"):
        taken, given = getattr(model.config, key, None), task.model_config.get(key)
        if given is not None and given != taken:
            raise RecipeError(f"the images have {key} {given}, and the model '{name}' takes {taken}.")
    if task.model_config.get("vocab_size", 0) > getattr(model.config, "vocab_size", 0):
        raise RecipeError(
            f"the tokenizer has {task.model_config['vocab_size']} tokens, and the model '{name}' takes "
            f"{model.config.vocab_size}; name its own tokenizer in data.tokenizer."
        )
    return model  # type: ignore[no-any-return]


def resolve_granularities(recipe: Recipe, info: Elastic) -> dict[str, Subnet]:
    """Return the named subnets of a recipe; where it names none, the smallest and the largest."""
    if not recipe.granularities:
        return {"smallest": info.resolved.smallest, "largest": info.resolved.largest}
    return {name: info.resolved.granularity(choices) for name, choices in recipe.granularities.items()}


def training_arguments(recipe: Recipe, work: Path, *, progress_bar: bool = True) -> TrainingArguments:
    """Return the Trainer's arguments of a recipe.

    Raises:
        RecipeError: if one is unknown (suggests the right one), is not the recipe's to set, or has a bad value.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    given = recipe.training.arguments
    for key in given:
        if key not in known:
            raise RecipeError(f"unknown key 'training.arguments.{key}'{did_you_mean(key, known)}")
        if key in _OURS:
            raise RecipeError(f"training.arguments.{key} is set by Elastic; leave it out (the recipe has a 'seed').")
    defaults = {"report_to": "none", "save_total_limit": 2, "disable_tqdm": not progress_bar}
    try:
        return TrainingArguments(output_dir=str(work), seed=recipe.seed, **{**defaults, **given})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training.arguments: {error}") from None


def _sampler(recipe: Recipe, info: Elastic, granularities: Sequence[Subnet]) -> Sampler:
    section = recipe.training.sampler
    if section.name == "sandwich":
        return Sandwich(info.resolved, num_random=section.num_random, seed=recipe.seed)
    return Joint(granularities) if section.name == "joint" else Uniform(granularities, seed=recipe.seed)


def _objective(recipe: Recipe) -> Objective:
    section = recipe.training.objective
    if section.name == "task":
        return TaskLoss()
    if recipe.training.sampler.name == "uniform":
        raise RecipeError("the objective 'distillation' needs several subnets a step: the sampler joint or sandwich.")
    return InPlaceDistillation(section.temperature, section.task_weight)


def _compute_metrics(task: Task) -> Callable[[Any], dict[str, float]] | None:
    if task.metric.name == "loss":
        return None

    def compute(prediction: Any) -> dict[str, float]:
        total, count = task.metric.counts(torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids))
        return {task.metric.name: total / count}

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


# Using what was trained


@dataclass(frozen=True)
class Universal:
    """A universal checkpoint, opened: its model, its recipe, and what its subnets cost."""

    folder: Path
    record: CheckpointRecord
    model: PreTrainedModel
    input_shapes: InputShapes

    @classmethod
    def open(cls, folder: Path, input_shapes: InputShapes | None = None) -> Universal:
        """Open a checkpoint folder.

        Raises:
            CheckpointError: if it is not a whole universal checkpoint.
        """
        record = read_record(folder)
        if record.kind != "universal":
            raise CheckpointError(f"{folder} is an extracted model; name the universal model that it was cut from.")
        shapes = input_shapes or {name: tuple(shape) for name, shape in record.input_shapes.items()}
        return cls(folder, record, load(folder), shapes)

    @property
    def elastic(self) -> Elastic:
        """The model's space and family."""
        return get_elastic(self.model)

    @functools.cached_property
    def cost_model(self) -> CostModel:
        """Predicts the cost of any subnet."""
        return CostModel.of(self.model, self.input_shapes)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe that the model was trained with."""
        if self.record.recipe is None:
            raise CheckpointError(f"{self.folder} does not say what it was trained on, so quality cannot be measured.")
        return parse_recipe(self.record.recipe, str(self.folder / "elastic.json"))

    @functools.cached_property
    def task(self) -> Task:
        """The recipe's data."""
        return load_task(self.recipe)

    @functools.cached_property
    def granularities(self) -> dict[str, Subnet]:
        """The named subnets."""
        return resolve_granularities(self.recipe, self.elastic)

    def measure(self, subnet: Subnet, split: str = "validation") -> Quality:
        """Measure a subnet on held-out data."""
        with active(self.model, subnet):
            value, count = measure(self.model, self.task, split)
        metric = self.task.metric
        return Quality(metric.name, value, metric.higher_is_better, split, count)


def extract_checkpoint(universal: Universal, chosen: Measured, output: Path) -> CheckpointRecord:
    """Cut a subnet, verify it against the universal model, measure it on test data, and write it to ``output``.

    Raises:
        CheckError: if the outputs differ; nothing is written then.
        OutputExistsError: if ``output`` exists.
    """
    check_output(output)
    subnet = chosen.subnet
    small = extract(universal.model, subnet)
    tokens = next(iter(universal.input_shapes.values()))[-1]
    differences = [
        verify_extraction(universal.model, subnet, small, _on(universal.model, batch, tokens)) for batch in (1, 4)
    ]
    test_quality = None
    if "test" in universal.task.splits:
        value, count = measure(small, universal.task, "test")
        metric = universal.task.metric
        test_quality = Quality(metric.name, value, metric.higher_is_better, "test", count).to_dict()
    record = CheckpointRecord(
        kind="extracted",
        family=universal.record.family,
        elastic_version=elastic.__version__,
        input_shapes={name: list(shape) for name, shape in universal.input_shapes.items()},
        subnet=subnet.to_dict(),
        universal_dims=universal.elastic.dims,
        cost=chosen.cost.to_dict(),
        quality=chosen.quality.to_dict(),
        test_quality=test_quality,
        verification={"max_abs_diff": max(differences), "tolerance": TOLERANCE, "batches": [1, 4]},
        recipe=universal.record.recipe,
        training={"preprocess": dict(universal.task.preprocess)},
        source={"name": universal.folder.resolve().name, **universal.record.files},
    )
    with new_folder(output) as folder:
        save_checkpoint(small, record, folder)
        if universal.task.tokenizer is not None:
            universal.task.tokenizer.save_pretrained(folder)
    return record


def _on(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    inputs = sample_inputs(model.config, batch=batch, tokens=tokens)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def is_stock(universal: Universal, subnet: Subnet) -> bool:
    """Whether stock transformers can load this subnet."""
    return is_portable(universal.elastic.family, universal.model.config, subnet)
