"""Nested layers: stock modules whose class is swapped, so that their weights and names stay what they were.

Shapes: ``x`` is ``(..., in)``; a nested Linear reads the first rows, or the first columns, of one
weight ``(out, in)``, so that every narrower layer is a prefix of the wider (MatFormer, arXiv
2310.07707, section 3). A fused projection holds several such weights, one block of rows after the
other, and gives the prefix of each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from elastic.families import Block, Skip, output_dim
from elastic.nested.active import ActiveSubnet
from elastic.nested.gates import Part, RoutedPass, pinned_gates
from elastic.portable import skipped_output
from elastic.space import Subnet

SublayerAxis = Literal["ffn", "heads"]


@dataclass(frozen=True)
class Position:
    """Where a nested module sits: the choice of one axis in one layer decides about it."""

    active: ActiveSubnet
    layer: int
    axis: SublayerAxis
    choices_per_unit: int = 1
    """Query heads that leave together (more than 1 for grouped keys and values)."""
    blocks: tuple[Block, ...] = ()
    """Where the units lie in the rows of a projection."""
    part: Part = field(default_factory=Part)
    """The place of a module in its sub-layer."""

    @property
    def choice(self) -> int:
        """The FFN width or the query heads that this thread runs here; 0 if the sub-layer is skipped."""
        choices: tuple[int, ...] = getattr(self.active.current, self.axis)
        return choices[self.layer]

    @property
    def units(self) -> int:
        """Units of the active choice: neurons, or key-value groups."""
        return self.choice // self.choices_per_unit


def take_units(tensor: torch.Tensor, blocks: Sequence[Block], units: int, dim: int) -> torch.Tensor:
    """Return the rows of the first ``units`` of each block, along ``dim``."""
    parts = [tensor.narrow(dim, block.start, units * block.size) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class RowNested(nn.Module):
    """A linear layer of which the active choice takes the first units of every block of output rows."""

    nested: Position
    given_rows: tuple[torch.Tensor, torch.Tensor | None] | None = None
    """Rows to use instead of the active ones: for the cost model, to which gathered weights are no activations."""

    def active_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weight and the bias of the active choice."""
        if self.given_rows is not None:
            return self.given_rows
        nested, bias = self.nested, self.bias
        weight = take_units(self.weight, nested.blocks, nested.units, output_dim(self))  # type: ignore[arg-type]
        return weight, None if bias is None else take_units(bias, nested.blocks, nested.units, 0)  # type: ignore[arg-type]

    @property
    def runs_all(self) -> bool:
        """Whether the active choice is the widest."""
        return self.nested.units == self.nested.blocks[0].num_units


class RowNestedLinear(RowNested, nn.Linear):
    """A row-nested Linear."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in)`` to ``(..., active rows)``."""
        if self.runs_all:
            return super().forward(input)
        return F.linear(input, *self.active_rows())


class RowNestedConv1D(RowNested, Conv1D):
    """A row-nested Conv1D: its rows are columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in)`` to ``(..., active rows)``."""
        if self.runs_all:
            return super().forward(x)
        return _transposed_linear(x, *self.active_rows())


class ColumnNestedLinear(nn.Linear):
    """A Linear that takes as many input columns as its input has; the bias is shared by all widths."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., active columns)`` to ``(..., out)``."""
        columns = input.shape[-1]
        if columns == self.in_features:
            return super().forward(input)
        return F.linear(input, self.weight[:, :columns], self.bias)


class ColumnNestedConv1D(Conv1D):
    """A Conv1D that takes as many inputs as there are; the bias is shared by all widths."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., active columns)`` to ``(..., out)``."""
        columns = x.shape[-1]
        if columns == self.nx:
            return super().forward(x)
        return _transposed_linear(x, self.weight[:columns], self.bias)


ROW_NESTED = {nn.Linear: RowNestedLinear, Conv1D: RowNestedConv1D}
COLUMN_NESTED = {nn.Linear: ColumnNestedLinear, Conv1D: ColumnNestedConv1D}


def _transposed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    assert bias is not None  # a Conv1D has one always
    flat = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], flat.shape[-1])


def _record_beside_others(cache: Any, layer_idx: int | None, hidden: torch.Tensor) -> None:
    """Count positions of rows whose attention is off, in a cache that holds keys of rows whose attention was on."""
    layers = getattr(cache, "layers", ())
    held = layers[layer_idx] if layer_idx is not None and layer_idx < len(layers) else None
    if held is None or held.keys is None or held.keys.ndim != 4 or not held.values.shape[-1]:
        return
    keys, values = (hidden.new_zeros((hidden.shape[0], x.shape[1], hidden.shape[1], x.shape[3]))
                    for x in (held.keys, held.values))  # fmt: skip
    cache.update(keys, values, layer_idx)


@functools.cache
def skippable_class(cls: type[nn.Module], skip: Skip) -> type[nn.Module]:
    """Return a subclass of ``cls`` that does not compute while its sub-layer is skipped, or where a router says so."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        position: Position = self.sublayer
        layer_idx = getattr(self, "layer_idx", None)
        if not position.choice:
            return skipped_output(skip, layer_idx, args, kwargs)
        routed_pass = position.active.routed_pass
        compute = functools.partial(cls.forward, self)
        if routed_pass is None or position.part.before:
            return compute(*args, **kwargs)

        def skipped(args: tuple[Any, ...], kwargs: dict[str, Any], *, records: bool) -> Any:
            if records:
                hidden = args[0] if args else kwargs["hidden_states"]
                _record_beside_others(kwargs.get("past_key_values"), layer_idx, hidden)
            return skipped_output(skip, layer_idx if records else None, args, kwargs)

        return routed_pass.run((position.axis, position.layer), position.part, skip, compute, skipped, args, kwargs)

    return type(f"Skippable{cls.__name__}", (cls,), {"forward": forward, "__module__": __name__})


@functools.cache
def nested_layer_class(cls: type[nn.Module], returns_tuple: bool = False) -> type[nn.Module]:
    """Return a subclass of a Transformer layer that can be skipped, and that pins its subnet.

    The subnet, the stream that `resumed_from` gives, and the pass under routers travel as arguments of
    the forward pass. Activation checkpointing keeps the arguments for its recomputation, so that runs
    the same subnet by the same gates, in whichever thread.
    """
    names = list(inspect.signature(cls.forward).parameters)[1:]
    cache_index = names.index("past_key_values") if "past_key_values" in names else None

    def cache_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if cache_index is not None and len(args) > cache_index:
            return args[cache_index]
        return kwargs.get("past_key_values")

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        active: ActiveSubnet = self.nested_active
        pinned = {
            "elastic_subnet": active.current,
            "elastic_stream": active.resumed,
            "elastic_routed": active.routed_pass,
        }
        return cls.__call__(self, *args, **pinned, **kwargs)

    def forward(
        self: Any,
        *args: Any,
        elastic_subnet: Subnet,
        elastic_stream: torch.Tensor | None,
        elastic_routed: RoutedPass | None,
        **kwargs: Any,
    ) -> Any:
        if elastic_stream is not None:
            return (elastic_stream,) if returns_tuple else elastic_stream
        layer, cache = self.nested_index, cache_of(args, kwargs)
        # With a cache, the attention of a skipped layer has positions to record: see skipped_output.
        records = cache is not None and not getattr(cache, "knows_its_length", False)
        if not (elastic_subnet.heads[layer] or elastic_subnet.ffn[layer] or records):
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if returns_tuple else hidden
        if elastic_routed is None and pinned_gates(cache):
            elastic_routed = RoutedPass()
        if elastic_routed is not None:
            elastic_routed.enter(layer, cache)
        with self.nested_active.pin(elastic_subnet, elastic_routed):
            return cls.forward(self, *args, **kwargs)

    body = {"__call__": call, "forward": forward, "__module__": __name__}
    return type(f"Nested{cls.__name__}", (cls,), body)
