"""Makes a Transformers model elastic, in place: classes are swapped, weights and names stay."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from elastic.errors import ElasticError, FamilyError
from elastic.families import Family, get_family
from elastic.nested.active import ActiveSubnet, Elastic, get_elastic
from elastic.nested.layers import (
    ColumnNestedLinear,
    Position,
    RowNestedLinear,
    nested_layer_class,
    skippable_class,
)
from elastic.space import DropOrder, SearchSpace, Subnet

Model = TypeVar("Model", bound=PreTrainedModel)


def make_elastic(model: Model, space: SearchSpace, drop_order: DropOrder | None = None) -> Model:
    """Make ``model`` elastic along the axes of ``space``, and return it.

    The model is changed in place. It keeps its class, its parameter names and its outputs; it runs
    smaller subnets inside `elastic.active`.

    Args:
        model: a stock model of a supported family.
        space: which axes are elastic.
        drop_order: in which order layers leave (see `elastic.ordering.drop_order`); without one, the
            layers of shallow subnets are evenly spaced.

    Raises:
        FamilyError: if the architecture is not supported (lists the supported ones).
        SpaceError: if the space does not fit the model's sizes.
        ElasticError: if the model is elastic already.
    """
    if hasattr(model, "_elastic"):
        raise ElasticError("this model is elastic already; load it again to give it another space.")
    family = get_family(model.config)
    dims = family.dims(model.config)
    resolved = space.resolve(dims, drop_order)
    full = Subnet(ffn=(dims.ffn,) * dims.num_layers, heads=(dims.heads,) * dims.num_layers)
    active = ActiveSubnet(full)
    path, layers = family.find_layers(model)
    head_dim = family.head_dim(model.config)
    # Two passes, so that a model that turns out to be unsupported is left as it was.
    for index, layer in enumerate(layers):
        _check_layer(layer, family, f"{path}.{index}")
    for index, layer in enumerate(layers):
        _nest_layer(layer, family, active, index, head_dim, dims.heads_per_group)
    model._elastic = Elastic(family, space, resolved, active)  # type: ignore[assignment]
    return model


def set_drop_order(model: PreTrainedModel, drop_order: DropOrder | None) -> None:
    """Say in which order the layers of an elastic model leave; its weights do not change.

    Raises:
        SpaceError: if the order is of another number of layers.
        ElasticError: if the model is not elastic.
    """
    elastic = get_elastic(model)
    resolved = elastic.space.resolve(elastic.dims, drop_order)
    model._elastic = dataclasses.replace(elastic, resolved=resolved)  # type: ignore[assignment]


def _check_layer(layer: nn.Module, family: Family, where: str) -> None:
    linears = [p.path for p in family.head_inputs] + [family.head_output, *family.ffn_inputs, family.ffn_output]
    for path in [*linears, *family.skip_attention, *family.skip_mlp]:
        try:
            module = layer.get_submodule(path)
        except AttributeError:
            raise FamilyError(
                f"{where}.{path} does not exist in this model; Elastic supports the stock '{family.model_type}' layers."
            ) from None
        if path in linears and type(module) is not nn.Linear:
            raise FamilyError(
                f"{where}.{path} is a {type(module).__name__}, not a plain Linear; Elastic nests full-precision models "
                "without adapters (merge or remove them first)."
            )


def _nest_layer(
    layer: nn.Module, family: Family, active: ActiveSubnet, index: int, head_dim: int, heads_per_group: int
) -> None:
    for projection in family.head_inputs:
        group = heads_per_group if projection.shared_by_group else 1
        _nest_rows(layer, projection.path, Position(active, index, "heads", head_dim, group))
    for path in family.ffn_inputs:
        _nest_rows(layer, path, Position(active, index, "ffn"))
    for path in (family.head_output, family.ffn_output):
        layer.get_submodule(path).__class__ = ColumnNestedLinear
    for axis, modules in (("heads", family.skip_attention), ("ffn", family.skip_mlp)):
        for path, skip in modules.items():
            module = layer.get_submodule(path)
            module.__class__ = skippable_class(type(module), skip)  # type: ignore[arg-type]
            module.nested = Position(active, index, axis)  # type: ignore[assignment,arg-type]
    layer.nested_active = active  # type: ignore[assignment]
    layer.nested_index = index  # type: ignore[assignment]
    layer.__class__ = nested_layer_class(type(layer))  # type: ignore[arg-type]


def _nest_rows(layer: nn.Module, path: str, position: Position) -> None:
    linear = layer.get_submodule(path)
    linear.__class__ = RowNestedLinear
    linear.nested = position  # type: ignore[assignment]


def meta_model(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """Build a model of this class on the meta device: shapes without weights."""
    with torch.device("meta"):
        return model_class(config)  # type: ignore[arg-type]
