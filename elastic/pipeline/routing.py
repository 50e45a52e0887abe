"""Routers of a recipe and of a universal checkpoint: training them, measuring them, freezing them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from elastic.errors import RecipeError
from elastic.nested import Routing, add_routers, default_layers, get_elastic
from elastic.recipe import Recipe
from elastic.training import Capacity, ElasticTrainer, RoutedTrainer, RouterTraining


def trainer_class(recipe: Recipe, model: PreTrainedModel) -> Callable[..., ElasticTrainer | RoutedTrainer]:
    """Return what makes the trainer of a recipe; if it has routers, the model gets them.

    Routers of a universal model that is trained on are kept if they are of the same sub-layers.

    Raises:
        RecipeError: if the capacities are not as many as the routers.
        SpaceError: if a layer that is to have a router does not exist.
    """
    section = recipe.routers
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
    return functools.partial(RoutedTrainer, routers=RouterTraining(capacity, section.mode))
