"""Converts a pretrained model into a universal one: units ordered by importance, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import elastic
from elastic.checkpoint import copy_companions, described_drop_order, save_checkpoint
from elastic.cost import Cost, CostModel, InputShapes
from elastic.data import (
    Calibration,
    Task,
    calibration_from_text,
    calibration_of,
    load_task,
    measure,
    measure_items,
)
from elastic.errors import CheckError, CheckpointError, RecipeError
from elastic.extraction import choices_stock_refuses, extract, largest_difference, sample_inputs
from elastic.families import get_family
from elastic.folder import check_output, new_folder
from elastic.nested import active, get_elastic, make_elastic, meta_model, set_drop_order
from elastic.ordering import (
    Correction,
    DepthMethod,
    Method,
    correct,
    drop_order,
    order_within,
    permute,
    permute_hidden,
    score,
    score_hidden,
)
from elastic.pipeline.card import write_card
from elastic.pipeline.embedder import check_head
from elastic.pipeline.models import AUTO_CLASSES, check_supported, load_pretrained, resolve_granularities
from elastic.pipeline.quality import measured_cache, quality_of
from elastic.pipeline.training import versions
from elastic.recipe import ModelSection, Recipe
from elastic.record import CheckpointRecord, read_record
from elastic.selection import Measured
from elastic.space import AXES, DropOrder, ResolvedSpace, SearchSpace, Subnet

DEFAULT_TOKENS = 128
TOLERANCE = 1e-5
"""Largest difference that ordering may make, relative to the largest output: sums of the same numbers reordered."""


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will do, known from the configuration alone."""

    model: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    space: SearchSpace
    resolved: ResolvedSpace
    input_shapes: InputShapes
    smallest: Cost
    largest: Cost
    ordering: Method | None
    depth: DepthMethod | None

    def rows(self) -> list[dict[str, str]]:
        """Return what people should know before it starts, line by line."""
        axes = {axis: getattr(self.resolved, axis) for axis in self.space.to_dict()}
        shape = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in self.input_shapes.items())
        rows = [
            {"what": "model", "value": f"{self.model_class.__name__}, {self.config.model_type}"},
            *({"what": axis, "value": ", ".join(map(str, choices))} for axis, choices in axes.items()),
            {"what": "subnets", "value": f"{self.resolved.num_subnets:,}"},
            {"what": "parameters", "value": f"{self.smallest.params:,} to {self.largest.params:,}"},
            {"what": "FLOPs", "value": f"{self.smallest.flops:,} to {self.largest.flops:,} ({shape})"},
            {"what": "stock loading", "value": self._stock_loading()},
        ]
        if is_elastic(self.resolved, UNIT_AXES):
            rows.append({"what": "ordering", "value": self.ordering or "none"})
        if is_elastic(self.resolved, DEPTH_AXES):
            by = f"leave by {self.depth}" if self.depth else "evenly spaced ones stay"
            rows.append({"what": "layer order", "value": by})
        return rows

    def _stock_loading(self) -> str:
        refused = choices_stock_refuses(get_family(self.config), self.config, self.resolved)
        if not refused:
            return "every uniform subnet"
        listed = "; ".join(f"{axis} {', '.join(map(str, choices))}" for axis, choices in refused.items())
        return f"every uniform subnet but {listed} (elastic.load reads those)"


UNIT_AXES = ("ffn", "heads", "hidden")
DEPTH_AXES = ("layers", "attention", "mlp")


def is_elastic(space: ResolvedSpace, axes: Sequence[str]) -> bool:
    """Whether the space leaves a choice along one of these axes."""
    return any(len(getattr(space, axis)) > 1 for axis in axes)


def plan_conversion(
    model: str,
    space: SearchSpace,
    *,
    recipe: Recipe | None = None,
    ordering: Method | None = "activation",
    depth: DepthMethod | None = None,
    input_shapes: InputShapes | None = None,
) -> ConversionPlan:
    """Say what a conversion will do; reads the configuration, and no weights.

    Raises:
        CheckpointError: if the model cannot be found, or is quantized.
        FamilyError: if its architecture is not supported.
        SpaceError: if the space does not fit it.
    """
    if Path(model).is_dir() and (Path(model) / "elastic.json").is_file():
        kind = read_record(Path(model)).kind
        raise CheckpointError(f"{model} is {'a universal' if kind == 'universal' else 'an extracted'} model of Elastic "
                              "already; convert the pretrained model that it came from.")  # fmt: skip
    config = read_config(model)
    model_class = _model_class(config, recipe, model)
    shapes = dict(input_shapes or default_shapes(config))
    built = make_elastic(meta_model(model_class, config), space)
    resolved = get_elastic(built).resolved
    check_head(model, resolved)
    costs = CostModel(model_class, config, shapes)
    return ConversionPlan(
        model, model_class, config, space, resolved, shapes,
        smallest=costs.cost(resolved.smallest), largest=costs.cost(resolved.largest),
        ordering=ordering, depth=depth,
    )  # fmt: skip


def read_config(model: str) -> PreTrainedConfig:
    """Read the configuration of a pretrained model that can become elastic.

    Raises:
        CheckpointError: if it cannot be found or read, or is of a quantized model.
        FamilyError: if the architecture is not supported.
    """
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise CheckpointError(f"there is no folder {model}; name a folder with a checkpoint, or a model on the Hub.")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        where = "cannot be read" if Path(model).exists() else "is no folder here, and the Hub does not give it"
        raise CheckpointError(f"the model '{model}' {where}: {error}") from None
    check_supported(config, model)
    return config


def _model_class(config: PreTrainedConfig, recipe: Recipe | None, model: str) -> type[PreTrainedModel]:
    if recipe is not None:
        mapping: Any = AUTO_CLASSES[recipe.task]._model_mapping
        if type(config) not in mapping:
            raise RecipeError(f"'{model}' is a model of type '{config.model_type}', which cannot do {recipe.task}.")
        return mapping[type(config)]
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    raise CheckpointError(f"the configuration of '{model}' names no model class of transformers in 'architectures'.")


def default_shapes(config: PreTrainedConfig) -> InputShapes:
    """Return the input for which costs are stated: one example, texts of 128 tokens."""
    name, tensor = next(iter(sample_inputs(config, batch=1, tokens=DEFAULT_TOKENS).items()))
    return {name: tuple(tensor.shape)}


@dataclass(frozen=True)
class Conversion:
    """What came out of a conversion."""

    record: CheckpointRecord
    difference: float
    """Largest difference of outputs that ordering made, relative to the largest output."""
    points: list[Measured]
    """Subnets with their cost and their quality as they are, without training; empty without a recipe."""
    corrected: dict[Subnet, float]
    """The same subnets' quality after correction; empty where it was not asked for."""


def convert(
    plan: ConversionPlan,
    output: Path,
    *,
    recipe: Recipe | None = None,
    calibration: str | None = None,
    num_calibration: int = 512,
    correction: Correction | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Order a pretrained model's neurons, heads and layers by importance, and write it as a universal model.

    The full model computes what it did; its smaller subnets now keep what matters. Nothing is trained.

    Args:
        plan: what to do.
        output: folder to write; it must not exist.
        recipe: data and metric, for calibration and for the table; they are recorded, so that ``eval``,
            ``search`` and ``extract`` know them.
        calibration: text to calibrate on instead of the recipe's training data.
        num_calibration: how many examples of it.
        correction: also measure each subnet of the table after this correction.
        report: called with what happens next, in words.

    Raises:
        RecipeError: if the model cannot be loaded, or there is no usable calibration data.
        ElasticError: if a weight is not a number (names the tensor).
        CheckError: if ordering changed the model's outputs; nothing is written then.
        OutputExistsError: if ``output`` exists.
    """
    check_output(output)
    recipe = None if recipe is None else _recorded(recipe, plan)
    task = None if recipe is None else load_task(recipe)
    data = _calibration(plan, task, calibration, num_calibration)
    report(f"Loading {plan.model}")
    # The class comes with its task: a model for another one would lose its head.
    model = load_pretrained(plan.model_class, plan.model, {}, task, new_head=False).eval()
    make_elastic(model, plan.space)
    samples = [sample_inputs(model.config, batch=batch) for batch in (1, 3)]
    with torch.no_grad():
        before = [model(**inputs)[0] for inputs in samples]
        hidden_order = _order(model, plan, data, task, report)
        places = hidden_order if hidden_order and _returns_stream(model, samples[0]) else slice(None)
        difference = max(
            largest_difference(expected[..., places], model(**inputs)[0]) / max(1.0, float(expected.abs().max()))
            for expected, inputs in zip(before, samples, strict=True)
        )
    _check_unchanged(difference)
    set_drop_order(model, _drop_order(model, plan, data, task, report))
    record = _record(plan, recipe, model, data, difference, hidden_order)
    points, corrected = _one_shot(model, plan, recipe, task, data, correction, report)
    with new_folder(output) as folder:
        record = save_checkpoint(model, record, folder)
        copy_companions(plan.model, folder)
        if task is not None and task.tokenizer is not None:
            task.tokenizer.save_pretrained(folder)
        write_card(folder, output.name, record, model, points)
        if task is not None:
            known = measured_cache(folder, record.files, task)
            for point in points:
                known.put(point.subnet, point.quality)
    return Conversion(record, difference, points, corrected)


def _calibration(
    plan: ConversionPlan, task: Task | None, calibration: str | None, num_examples: int
) -> Calibration | None:
    if calibration is not None:
        return calibration_from_text(calibration, plan.model, num_examples)
    if task is not None:
        return calibration_of(task, num_examples)
    needs_data = [name for name in (plan.ordering, plan.depth) if name not in (None, "magnitude")]
    if needs_data:
        raise RecipeError(f"'{needs_data[0]}' needs calibration data; name a recipe or a text, or order by magnitude.")
    return None


def _order(
    model: PreTrainedModel,
    plan: ConversionPlan,
    data: Calibration | None,
    task: Task | None,
    report: Callable[[str], None],
) -> list[int] | None:
    """Put units into the order of their importance, as far as the space makes their axis elastic.

    Returns:
        The order of the residual stream's dimensions, if it changed.
    """
    axes = [axis for axis in UNIT_AXES if len(getattr(plan.resolved, axis)) > 1]
    if plan.ordering is None or not axes:
        return None
    over = f" over {len(data)} examples" if data else ""
    if units := [axis for axis in axes if axis != "hidden"]:
        report(f"Ordering {' and '.join(units)} by {plan.ordering}{over}")
        scores = score(model, plan.ordering, data or (), outputs=None if task is None else task.outputs)
        permute(model, {key: order_within(values) for key, values in scores.items() if key[1] in units})
    if "hidden" not in axes:
        return None
    by = hidden_method(plan.ordering)
    report(f"Ordering hidden dimensions by {by}{over if by == 'activation' else ''}")
    order = order_within(score_hidden(model, data or () if by == "activation" else ()))
    permute_hidden(model, order)
    return order


def hidden_method(ordering: Method) -> Method:
    """Return how the residual stream's dimensions are ordered, where units are ordered by ``ordering``."""
    return "magnitude" if ordering == "magnitude" else "activation"


def _returns_stream(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model's output is its residual stream, so that it changes places with it."""
    space = get_elastic(model).resolved
    with active(model, space.uniform(hidden=space.hidden[0])):
        narrow = model(**inputs)[0]
    return bool(narrow.shape[-1] != model(**inputs)[0].shape[-1])


def _drop_order(
    model: PreTrainedModel,
    plan: ConversionPlan,
    data: Calibration | None,
    task: Task | None,
    report: Callable[[str], None],
) -> DropOrder | None:
    if plan.depth is None or not is_elastic(plan.resolved, DEPTH_AXES):
        return None
    assert data is not None
    report(f"Ordering layers by {plan.depth}")
    return drop_order(model, plan.depth, data, outputs=None if task is None else task.outputs)


def _check_unchanged(difference: float) -> None:
    if not difference <= TOLERANCE:
        raise CheckError(
            f"ordering changed the model's outputs by {difference:.1e} of their size, more than {TOLERANCE:.0e}; "
            "nothing was written."
        )


def _recorded(recipe: Recipe, plan: ConversionPlan) -> Recipe:
    return recipe.model_copy(
        update={"model": ModelSection(pretrained=plan.model), "space": plan.space.to_dict()}  # type: ignore[call-arg]
    )


def _record(
    plan: ConversionPlan,
    recipe: Recipe | None,
    model: PreTrainedModel,
    data: Calibration | None,
    difference: float,
    hidden_order: list[int] | None,
) -> CheckpointRecord:
    ordering = {
        "source": plan.model,
        "units": plan.ordering,
        "depth": plan.depth,
        # Of a model that returns its stream: dimension i was dimension hidden_order[i] of the source.
        "hidden_order": hidden_order,
        "calibration": None if data is None else {"source": data.source, "examples": len(data)},
        "max_relative_diff": difference,
        "versions": versions(),
    }
    shapes = {name: list(shape) for name, shape in plan.input_shapes.items()}
    return CheckpointRecord(
        kind="universal",
        family=plan.config.model_type,
        elastic_version=elastic.__version__,
        input_shapes=shapes,
        space=plan.space.to_dict(),
        drop_order=described_drop_order(get_elastic(model)),
        ordering=ordering,
        granularities={} if recipe is None else recipe.granularities,
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
    )


def one_shot_subnets(resolved: ResolvedSpace, named: Iterable[Subnet] = ()) -> list[Subnet]:
    """Return what a first table shows: the largest subnet, those with a name, and the smallest.

    Where none has a name, each axis shrunk alone stands between the two.
    """
    subnets = [resolved.largest, *named]
    for axis in AXES if len(subnets) == 1 else ():
        subnets += [resolved.uniform(**{axis: choice}) for choice in reversed(getattr(resolved, axis)[:-1])]
    return list(dict.fromkeys([*subnets, resolved.smallest]))


def _one_shot(
    model: PreTrainedModel,
    plan: ConversionPlan,
    recipe: Recipe | None,
    task: Task | None,
    data: Calibration | None,
    correction: Correction | None,
    report: Callable[[str], None],
) -> tuple[list[Measured], dict[Subnet, float]]:
    if recipe is None or task is None:
        return [], {}
    costs, resolved = CostModel.of(model, plan.input_shapes), get_elastic(model).resolved
    granularities = resolve_granularities(recipe.granularities, get_elastic(model))
    named = {subnet: name for name, subnet in granularities.items()}
    subnets = one_shot_subnets(resolved, named if recipe.granularities else ())
    points, corrected = [], {}
    for number, subnet in enumerate(subnets, 1):
        report(f"Measuring {number} of {len(subnets)}: {subnet.describe()}")
        with active(model, subnet):
            quality = quality_of(task.metric, measure_items(model, task, "validation"), "validation")
        points.append(Measured(subnet, costs.cost(subnet), quality, "uniform", named.get(subnet, "")))
        if correction is not None and data is not None and subnet != resolved.largest:
            small = extract(model, subnet)
            correct(model, subnet, small, data, method=correction)
            corrected[subnet] = measure(small, task, "validation", embedding_dim=subnet.embedding_dim)[0]
    return points, corrected
