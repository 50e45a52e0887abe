"""Makes a Transformers model elastic, in place: classes are swapped, weights and names stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from elastic.errors import ElasticError, FamilyError
from elastic.families import LINEAR_CLASSES, Block, Family, Skip, get_family
from elastic.nested.active import ActiveSubnet, Elastic, get_elastic
from elastic.nested.gates import Part
from elastic.nested.head_sizes import sized_class, sizes_by_module
from elastic.nested.layers import (
    COLUMN_NESTED,
    ROW_NESTED,
    Position,
    SublayerAxis,
    nested_layer_class,
    skippable_class,
)
from elastic.nested.stream import Stream
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
    _check_class(model, family)
    dims = family.dims(model.config)
    resolved = space.resolve(dims, drop_order)
    full = Subnet(ffn=(dims.ffn,) * dims.num_layers, heads=(dims.heads,) * dims.num_layers)
    active = ActiveSubnet(full)
    path, layers = family.find_layers(model)
    # Two passes, so that a model that turns out to be unsupported is left as it was.
    for index, layer in enumerate(layers):
        _check_layer(layer, family, f"{path}.{index}")
    stream = None if dims.hidden_fixed else Stream.of(family, type(model), model.config)
    blocks = {**family.head_blocks(model.config), **family.ffn_blocks(model.config)}
    for index, layer in enumerate(layers):
        _nest_layer(layer, family, blocks, active, index, dims.heads_per_group, family.head_dim(model.config))
    if stream is not None:
        stream.nest(model, active)
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


def _check_class(model: PreTrainedModel, family: Family) -> None:
    names = {cls.__name__ for cls in type(model).__mro__}
    if family.model_classes and not names.intersection(family.model_classes):
        raise FamilyError(
            f"{type(model).__name__} is not supported; of models of type '{family.model_type}', "
            f"{' and '.join(family.model_classes)} is."
        )


def _check_layer(layer: nn.Module, family: Family, where: str) -> None:
    linears = [p.path for p in family.head_inputs] + [family.head_output, *family.ffn_inputs, family.ffn_output]
    for path in [*linears, *family.skip_attention, *family.skip_mlp]:
        try:
            module = layer.get_submodule(path)
        except AttributeError:
            raise FamilyError(
                f"{where}.{path} does not exist in this model; Elastic supports the stock '{family.model_type}' layers."
            ) from None
        if path in linears and type(module) not in LINEAR_CLASSES:
            raise FamilyError(
                f"{where}.{path} is a {type(module).__name__}, not a plain Linear; Elastic nests full-precision models "
                "without adapters (merge or remove them first)."
            )


def _nest_layer(
    layer: nn.Module,
    family: Family,
    blocks: Mapping[str, tuple[Block, ...]],
    active: ActiveSubnet,
    index: int,
    heads_per_group: int,
    head_dim: int,
) -> None:
    axes: tuple[tuple[SublayerAxis, Iterable[str], int, str, Mapping[str, Skip]], ...] = (
        ("heads", {p.path for p in family.head_inputs}, heads_per_group, family.head_output, family.skip_attention),
        ("ffn", set(family.ffn_inputs), 1, family.ffn_output, family.skip_mlp),
    )
    for axis, inputs, choices_per_unit, output, modules in axes:
        for path in inputs:
            linear = layer.get_submodule(path)
            linear.__class__ = ROW_NESTED[type(linear)]  # type: ignore[index,assignment]
            linear.nested = Position(active, index, axis, choices_per_unit, blocks[path])  # type: ignore[assignment]
        linear = layer.get_submodule(output)
        linear.__class__ = COLUMN_NESTED[type(linear)]  # type: ignore[index,assignment]
        parts = _parts(list(modules), [*inputs, output])
        for path, skip in modules.items():
            module = layer.get_submodule(path)
            module.__class__ = skippable_class(type(module), skip)  # type: ignore[assignment,arg-type]
            module.sublayer = Position(active, index, axis, part=parts[path])  # type: ignore[assignment]
    for path, sizes in sizes_by_module(family).items():
        module = layer.get_submodule(path)
        module.__class__ = sized_class(type(module), sizes, head_dim, heads_per_group)  # type: ignore[assignment,arg-type]
    layer.nested_active = active  # type: ignore[assignment]
    layer.nested_index = index  # type: ignore[assignment]
    layer.__class__ = nested_layer_class(type(layer), family.layer_returns_tuple)  # type: ignore[assignment,arg-type]


def _parts(modules: Sequence[str], projections: Iterable[str]) -> dict[str, Part]:
    """Return the place of each module in its sub-layer: norms, then those that hold projections, then norms."""
    holds = [any(f"{path}.".startswith(f"{module}.") for path in projections) for module in modules]
    first = holds.index(True)
    return {
        module: Part(before=index < first, reads=index == first, ends=index == len(modules) - 1, on_stream=first == 0)
        for index, module in enumerate(modules)
    }
