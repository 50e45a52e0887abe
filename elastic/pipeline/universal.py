"""A universal checkpoint, opened: what its subnets cost, how good they are, and cutting one out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
)

import elastic
from elastic.checkpoint import copy_companions, load, save_checkpoint
from elastic.cost import CostModel, DecoderCostModel, InputShapes, LatencyTable, Phase
from elastic.data import (
    Task,
    calibration_of,
    cut_embedder,
    load_task,
    measure,
    measure_items,
)
from elastic.errors import CheckpointError
from elastic.extraction import TOLERANCE, extract, is_portable, sample_inputs, verify_extraction
from elastic.folder import check_output, new_folder
from elastic.nested import Elastic, active, get_elastic
from elastic.ordering import Correction, correct
from elastic.pipeline.card import write_card
from elastic.pipeline.models import resolve_granularities
from elastic.pipeline.quality import measured_cache, quality_of
from elastic.recipe import Recipe, parse_recipe
from elastic.record import CheckpointRecord, read_record
from elastic.selection import Measured, MeasuredCache, Quality
from elastic.selection.pareto import pareto_front
from elastic.space import Subnet

NUM_CALIBRATION = 512
"""Training examples over which an extracted model is corrected."""


@dataclass(frozen=True)
class Universal:
    """A universal checkpoint, opened: its model, its recipe, and what its subnets cost."""

    folder: Path
    record: CheckpointRecord
    model: PreTrainedModel
    input_shapes: InputShapes
    phase: Phase | None = None
    """Of a decoder: the phase that costs are of, instead of a forward pass over the input shapes."""
    table: LatencyTable | None = None
    """Of the device whose latency costs have."""

    @classmethod
    def open(
        cls,
        folder: Path,
        input_shapes: InputShapes | None = None,
        phase: Phase | None = None,
        table: LatencyTable | None = None,
    ) -> Universal:
        """Open a checkpoint folder; with a latency table, costs have the latency on its device.

        Raises:
            CheckpointError: if it is not a whole universal checkpoint.
        """
        record = read_record(folder)
        if record.kind != "universal":
            raise CheckpointError(f"{folder} is an extracted model; name the universal model that it was cut from.")
        shapes = input_shapes or {name: tuple(shape) for name, shape in record.input_shapes.items()}
        return cls(folder, record, load(folder), shapes, phase, table)

    @property
    def elastic(self) -> Elastic:
        """The model's space and family."""
        return get_elastic(self.model)

    @functools.cached_property
    def cost_model(self) -> CostModel:
        """Predicts the cost of any subnet."""
        if self.phase is None:
            costs = CostModel.of(self.model, self.input_shapes)
        else:
            costs = DecoderCostModel(type(self.model), self.model.config, self.phase, dtype=self.model.dtype)
        return costs if self.table is None else costs.with_table(self.table)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe that the model was trained with."""
        if self.record.recipe is None:
            raise CheckpointError(
                f"{self.folder} names no data, so quality cannot be measured; convert the model with --recipe."
            )
        return parse_recipe(self.record.recipe, str(self.folder / "elastic.json"))

    @functools.cached_property
    def task(self) -> Task:
        """The recipe's data."""
        return load_task(self.recipe, self.folder)

    @functools.cached_property
    def granularities(self) -> dict[str, Subnet]:
        """The named subnets."""
        return resolve_granularities(self.record.granularities, self.elastic)

    @functools.cached_property
    def measured(self) -> MeasuredCache:
        """What has been measured of these weights on this validation data."""
        return measured_cache(self.folder, self.record.files, self.task)

    def remembering(
        self, measure: Callable[[Subnet], Quality], conditions: Mapping[str, Any]
    ) -> Callable[[Subnet], Quality]:
        """Return another way to measure subnets on validation data that remembers what it measured before.

        Args:
            measure: measures a subnet.
            conditions: what the quality depends on besides weights, data and metric: a precision, for example.
        """
        cache = measured_cache(self.folder, self.record.files, self.task, conditions)

        def run(subnet: Subnet) -> Quality:
            known = cache.get(subnet)
            if known is None:
                known = measure(subnet)
                cache.put(subnet, known)
            return known

        return run

    def measure(self, subnet: Subnet, split: str = "validation") -> Quality:
        """Measure a subnet on held-out data, or remember what was measured before on validation data."""
        known = self.measured.get(subnet) if split == "validation" else None
        if known is not None:
            return known
        quality = self._measure(subnet, split)
        if split == "validation":
            self.measured.put(subnet, quality)
        return quality

    def _measure(self, subnet: Subnet, split: str) -> Quality:
        with active(self.model, subnet):
            items = measure_items(self.model, self.task, split)
        return quality_of(self.task.metric, items, split)


def extract_checkpoint(
    universal: Universal,
    chosen: Measured,
    output: Path,
    *,
    correction: Correction | None = None,
    export_as: Mapping[str, str] | None = None,
) -> CheckpointRecord:
    """Cut a subnet, verify it against the universal model, measure it on test data, and write it to ``output``.

    Args:
        universal: what is cut.
        chosen: the subnet with its cost and quality.
        output: folder to write; it must not exist.
        correction: how the weights are adjusted after the cut has been verified (see `elastic.ordering.correct`).
        export_as: the options of an export in the precision that ``chosen`` was measured in, where that is not float32.

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
    precision = None if export_as is None else {**export_as, "quality": chosen.quality.to_dict()}
    if precision is not None:
        # What is written here is in float32.
        chosen = replace(chosen, quality=universal.measure(subnet), precision="fp32")
    corrected = None if correction is None else _correct(universal, subnet, small, correction)
    test_quality = None
    if "test" in universal.task.splits:
        value, count = measure(small, universal.task, "test", embedding_dim=subnet.embedding_dim)
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
        precision=precision,
        test_quality=test_quality,
        comparison=_comparison(universal, chosen),
        verification={"max_abs_diff": max(differences), "tolerance": TOLERANCE, "batches": [1, 4]},
        correction=corrected,
        ordering=universal.record.ordering,
        recipe=universal.record.recipe,
        training={"preprocess": dict(universal.task.preprocess)},
        source={"name": universal.folder.resolve().name, **universal.record.files},
    )
    with new_folder(output) as folder:
        save_checkpoint(small, record, folder)
        copy_companions(universal.folder, folder)
        cut_embedder(folder, subnet, universal.elastic.dims)
        if universal.task.tokenizer is not None:
            universal.task.tokenizer.save_pretrained(folder)
        write_card(folder, output.name, record, small)
    return record


def _comparison(universal: Universal, chosen: Measured) -> dict[str, dict[str, Any]]:
    """Return the largest subnet, and the nearest on the front of what was measured, cheaper and dearer."""
    largest = universal.elastic.resolved.largest
    universal.measure(largest)
    costs = universal.cost_model.without_table()
    others = [(s, q) for s, q in universal.measured.items() if s != chosen.subnet]
    front = pareto_front([chosen, *(Measured(s, costs.cost(s), q, "measured") for s, q in others)])
    found = {
        "cheaper": [p for p in front if p.cost.flops < chosen.cost.flops][-1:],
        "dearer": [p for p in front if p.cost.flops > chosen.cost.flops and p.subnet != largest][:1],
        "largest": [Measured(s, costs.cost(s), q, "measured") for s, q in others if s == largest],
    }
    return {
        role: {"subnet": p.subnet.describe(), "cost": p.cost.to_dict(), "quality": p.quality.to_dict()}
        for role, points in found.items()
        for p in points
    }


def _correct(universal: Universal, subnet: Subnet, small: PreTrainedModel, correction: Correction) -> dict[str, Any]:
    data = calibration_of(universal.task, NUM_CALIBRATION)
    correct(universal.model, subnet, small, data, method=correction)
    value, count = measure(small, universal.task, "validation", embedding_dim=subnet.embedding_dim)
    metric = universal.task.metric
    return {
        "method": correction,
        "examples": len(data),
        "quality": Quality(metric.name, value, metric.higher_is_better, "validation", count).to_dict(),
    }


def _on(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    inputs = sample_inputs(model.config, batch=batch, tokens=tokens)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def is_stock(universal: Universal, subnet: Subnet) -> bool:
    """Whether stock transformers can load this subnet."""
    return is_portable(universal.elastic.family, universal.model.config, subnet)
