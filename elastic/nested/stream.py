"""The residual stream, elastic: every weight that reads or writes it gives the slice of its first dimensions.

Norms, embeddings and projections are sliced together, as in AutoFormer (arXiv 2107.00651, section 3.2). Which
dimensions of which weights are the stream's is found by comparing the architecture at two hidden sizes, so a
vocabulary that happens to be as large as the hidden size is not mistaken for it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elastic.errors import FamilyError
from elastic.families import Block, Family, num_inputs, num_outputs, output_dim
from elastic.nested.active import ActiveSubnet
from elastic.nested.architecture import complete_first_layer, config_of_layers, meta_model
from elastic.nested.layers import take_units

StreamDims = tuple[tuple[int, tuple[Block, ...]], ...]
"""The dimensions of one weight along which the stream lies: once, or several times one after the other."""


PROBE = 3
"""How many times wider the architecture is that is compared with: sizes of configurations are rarely thirds."""


@dataclass(frozen=True)
class Stream:
    """Which dimensions of a model's weights are those of its residual stream."""

    hidden: int
    """The full width."""
    layers: str
    """The path of the layers inside the model."""
    outside: Mapping[str, StreamDims]
    """By the name of a weight outside of the layers."""
    layer: Mapping[str, StreamDims]
    """By the name of a weight inside its layer."""

    @classmethod
    def of(cls, family: Family, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Stream:
        """Find the stream of an architecture; builds two models of one layer, without weights.

        Raises:
            FamilyError: if a weight comes or goes with the hidden size, or grows and is no multiple of it.
        """
        hidden = family.dims(config).hidden
        wider = family.at_hidden(config, PROBE * hidden)
        small, large = (_one_layer(family, model_class, c) for c in (config, wider))
        path, (layer,) = family.find_layers(small)
        axes = _axis_dims(family, layer)
        shapes = {name: parameter.shape for name, parameter in large.named_parameters(remove_duplicate=False)}
        outside, inside = {}, {}
        for name, parameter in small.named_parameters(remove_duplicate=False):
            in_layer = name.removeprefix(f"{path}.0.") if name.startswith(f"{path}.0.") else None
            if name not in shapes:
                raise FamilyError(f"'{name}' is not in a model of this architecture with another hidden size.")
            dims = _grown(parameter.shape, shapes[name], hidden, name, axes.get(in_layer))
            if dims and in_layer is None:
                outside[name] = dims
            elif dims and in_layer is not None:
                inside[in_layer] = dims
        return cls(hidden, path, outside, inside)

    def dims(self, name: str) -> StreamDims:
        """Return along which dimensions of this weight the stream lies; nothing if it does not."""
        if name.startswith(f"{self.layers}."):
            return self.layer.get(name[len(self.layers) + 1 :].partition(".")[2], ())
        return self.outside.get(name, ())

    def take(self, name: str, weight: torch.Tensor, hidden: int) -> torch.Tensor:
        """Return the slice of a weight that belongs to the first ``hidden`` dimensions of the stream."""
        return _sliced(weight, self.dims(name), hidden)

    def counts(self, layers: str) -> dict[str, list[list[int]]]:
        """Return how many times the stream lies along each dimension of each weight, as JSON.

        Names are those inside the base model, with ``*`` for the number of a layer; what lies outside of the base
        model (a head) has its whole name.

        Args:
            layers: the path of the layers inside the base model.
        """
        prefix = self.layers.removesuffix(layers)
        outside = {name.removeprefix(prefix): dims for name, dims in self.outside.items()}
        inside = {f"{layers}.*.{name}": dims for name, dims in self.layer.items()}
        return {name: [[dim, len(blocks)] for dim, blocks in dims] for name, dims in {**outside, **inside}.items()}

    def nest(self, model: nn.Module, active: ActiveSubnet) -> None:
        """Swap the classes of all modules that read or write the stream: they follow the active hidden size."""
        for path, module in model.named_modules():
            names = [name for name, _ in module.named_parameters(recurse=False)]
            dims = {name: self.dims(f"{path}.{name}".lstrip(".")) for name in names}
            spec = tuple((name, found) for name, found in dims.items() if found)
            if spec:
                module.__class__ = sliced_class(type(module), spec)  # type: ignore[arg-type]
                module.stream_active = active  # type: ignore[assignment]


def _one_layer(family: Family, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    model = meta_model(model_class, config_of_layers(family, config, (0,)))
    complete_first_layer(family.find_layers(model)[1][0], family)
    return model


def _axis_dims(family: Family, layer: nn.Module) -> dict[str | None, int]:
    """Return, for each weight of a layer that lies along heads or neurons, the dimension that does."""
    found: dict[str | None, int] = {}
    for path in {*(p.path for p in family.head_inputs), *family.ffn_inputs}:
        found |= {f"{path}.weight": output_dim(layer.get_submodule(path)), f"{path}.bias": 0}
    for path in (family.head_output, family.ffn_output):
        found[f"{path}.weight"] = 1 - output_dim(layer.get_submodule(path))
    return found


def _grown(small: torch.Size, large: torch.Size, hidden: int, name: str, other_axis: int | None) -> StreamDims:
    found = []
    for dim, (before, after) in enumerate(zip(small, large, strict=True)):
        if before == after or dim == other_axis:
            continue
        times = (after - before) // ((PROBE - 1) * hidden)
        if before != times * hidden:
            raise FamilyError(f"dimension {dim} of '{name}' grows with the hidden size, and is no multiple of it.")
        found.append((dim, tuple(Block(i * hidden, hidden, 1) for i in range(times))))
    return tuple(found)


def _sliced(weight: torch.Tensor, dims: StreamDims, hidden: int) -> torch.Tensor:
    for dim, blocks in dims:
        weight = take_units(weight, blocks, hidden, dim)
    return weight


class _SlicedParameter:
    """Shadows a parameter for reads: the slice of the active hidden size. `state_dict` and optimizers see it whole."""

    def __init__(self, name: str, dims: StreamDims) -> None:
        self.name, self.dims = name, dims

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self
        parameters = module.__dict__["_parameters"]
        # FSDP puts plain tensors in the place of parameters while it runs.
        held = parameters if self.name in parameters else module.__dict__
        if self.name not in held:
            raise AttributeError(self.name)
        whole = held[self.name]
        hidden = module.stream_active.current.hidden
        return whole if hidden is None else _sliced(whole, self.dims, hidden)

    def __set__(self, module: Any, value: Any) -> None:
        module.__dict__[self.name] = value

    def __delete__(self, module: Any) -> None:
        module.__dict__.pop(self.name, None)


@functools.cache
def sliced_class(cls: type[nn.Module], spec: tuple[tuple[str, StreamDims], ...]) -> type[nn.Module]:
    """Return a subclass of ``cls`` that reads slices of these parameters, and the sizes that follow from them."""
    body: dict[str, Any] = {name: _SlicedParameter(name, dims) for name, dims in spec}
    if issubclass(cls, (nn.LayerNorm, nn.RMSNorm)):
        body["normalized_shape"] = property(lambda self: tuple(self.weight.shape))
    if issubclass(cls, Conv1D):
        body |= {"nf": property(num_outputs), "nx": property(num_inputs)}
    return type(f"Sliced{cls.__name__}", (cls,), {**body, "__module__": __name__})
