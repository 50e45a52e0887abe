"""Architectures without weights: configurations of some of the layers, and models of them on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.families import Family


def meta_model(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """Build a model of this class on the meta device: shapes without weights."""
    with torch.device("meta"):
        return model_class(config)  # type: ignore[arg-type]


def config_of_layers(family: Family, config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a configuration that describes only these layers."""
    result = copy.deepcopy(config)
    body = family.body_config(result)
    setattr(body, family.layers_field, len(kept))
    for name in family.layer_lists:
        if values := getattr(body, name, None):
            setattr(body, name, [values[i] for i in kept])
    return result


def complete_first_layer(layer: nn.Module, family: Family) -> None:
    """Give the first layer of a model what it would lack there, because it comes from further up."""
    for path, like in family.first_layer_lacks.items():
        layer.set_submodule(path, copy.deepcopy(layer.get_submodule(like)))
