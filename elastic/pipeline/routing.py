"""Routers of a recipe and of a universal checkpoint: training them, measuring them, freezing them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from elastic.cost import Cost, CostModel
from elastic.data import calibration_of, measure_items
from elastic.errors import RecipeError
from elastic.nested import GateKey, Routing, active, add_routers, default_layers, get_elastic, routed
from elastic.ordering import freeze_routers, threshold_for, without
from elastic.pipeline.quality import quality_of
from elastic.recipe import Recipe
from elastic.selection import Quality
from elastic.space import Subnet
from elastic.training import (
    AutoEncoding,
    AutoEncodingTrainer,
    Capacity,
    ElasticTrainer,
    RoutedTrainer,
    RouterTraining,
    gate_report,
)

if TYPE_CHECKING:
    from elastic.pipeline.universal import Universal

NUM_CALIBRATION = 512
"""Training examples over which thresholds are found and routers frozen."""


def trainer_class(
    recipe: Recipe, model: PreTrainedModel, auto_encoding: AutoEncoding | None = None
) -> Callable[..., ElasticTrainer | RoutedTrainer | AutoEncodingTrainer]:
    """Return what makes the trainer of a recipe; if it has routers, the model gets them.

    Routers of a universal model that is trained on are kept if they are of the same sub-layers.

    Raises:
        RecipeError: if the capacities are not as many as the routers.
        SpaceError: if a layer that is to have a router does not exist.
    """
    section = recipe.routers
    if auto_encoding is not None:
        return functools.partial(AutoEncodingTrainer, auto_encoding=auto_encoding)
    if section is None:
        return ElasticTrainer
    layers = default_layers(get_elastic(model).dims.num_layers) if section.layers is None else section.layers
    wanted = Routing(section.what, tuple(layers), section.threshold, section.initial_bias)
    capacity = Capacity(
        tuple(section.capacity) if isinstance(section.capacity, list) else section.capacity,
        section.weight,
        section.per_layer,
        section.penalty,
    )
    capacity.check(len(wanted.keys))
    if recipe.model.pretrained is None and section.mode == "tune":
        raise RecipeError("routers.mode 'tune' trains nothing else, and needs model.pretrained; or choose mode: joint.")
    if get_elastic(model).routing != wanted:
        add_routers(model, wanted)
    return functools.partial(RoutedTrainer, routers=RouterTraining(capacity, section.mode, section.gradient))


@dataclass(frozen=True)
class MeasuredRouters:
    """A subnet as its routers run it: what they computed of held-out data, and how good it was."""

    name: str
    subnet: Subnet
    threshold: float
    usage: Mapping[GateKey, float]
    """Share of sequences for which each gate was on."""
    cost: Cost
    """Of the subnet with all gates on."""
    expected_flops: int
    """Of one forward pass of batch 1: the mean over the measured gates."""
    quality: Quality

    @property
    def capacity(self) -> float:
        """The mean of ``usage``."""
        return sum(self.usage.values()) / len(self.usage) if self.usage else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "subnet": self.subnet.to_dict(),
            "description": self.subnet.describe(),
            "threshold": self.threshold,
            **gate_report(self.usage),
            "expected_flops": self.expected_flops,
            "cost": self.cost.to_dict(),
            "quality": self.quality.to_dict(),
        }


def expected_flops(cost_model: CostModel, subnet: Subnet, usage: Mapping[GateKey, float]) -> int:
    """Return the FLOPs of one forward pass of batch 1, as the mean over sequences of which these shares compute.

    The routers' own products are not counted: one of the hidden size for each gate and sequence.
    """
    full = cost_model.cost(subnet).flops
    saved = {key: full - cost_model.cost(without(subnet, [key])).flops for key in usage}
    return round(full - sum((1.0 - share) * saved[key] for key, share in usage.items()))


def measure_routed(
    universal: Universal, subnet: Subnet, split: str = "validation", *, name: str = "", threshold: float | None = None
) -> MeasuredRouters:
    """Measure a subnet on held-out data as its routers run it.

    Raises:
        ElasticError: if the model has no routers.
        SpaceError: if the threshold is not between 0 and 1.
    """
    with active(universal.model, subnet), routed(universal.model, threshold, dense=False) as trace:
        items = measure_items(universal.model, universal.task, split)
    routing = universal.elastic.routing
    assert routing is not None
    return MeasuredRouters(
        name=name,
        subnet=subnet,
        threshold=routing.threshold if threshold is None else threshold,
        usage=trace.usage,
        cost=universal.cost_model.cost(subnet),
        expected_flops=expected_flops(universal.cost_model, subnet, trace.usage),
        quality=quality_of(universal.task.metric, items, split),
    )


def threshold_of(universal: Universal, subnet: Subnet, capacity: float) -> float:
    """Return the threshold at which a subnet's routers have this capacity on training data."""
    return threshold_for(universal.model, calibration_of(universal.task, NUM_CALIBRATION), capacity, subnet=subnet)


def frozen_subnet(universal: Universal, capacity: float | None = None) -> Subnet:
    """Return the largest subnet without the sub-layers that the routers use least on training data.

    Raises:
        RecipeError: if no capacity is given, and the model was not trained with one.
        ElasticError: if the model has no routers.
    """
    if capacity is None:
        section = universal.recipe.routers
        if section is None:
            raise RecipeError("the model's recipe names no capacity of routers; give one with --capacity 50%.")
        capacity = section.mean_capacity
    return freeze_routers(universal.model, calibration_of(universal.task, NUM_CALIBRATION), capacity)
