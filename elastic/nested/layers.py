"""Nested layers: stock modules whose class is swapped, so that their weights and names stay what they were.

Shapes: ``x`` is ``(..., in)``; a nested Linear reads the first rows, or the first columns, of one
weight ``(out, in)``, so that every narrower layer is a prefix of the wider (MatFormer, arXiv
2310.07707, section 3).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from elastic.families import Skip
from elastic.nested.active import ActiveSubnet
from elastic.space import Subnet

SublayerAxis = Literal["ffn", "heads"]


@dataclass(frozen=True)
class Position:
    """Where a nested module sits: the choice of one axis in one layer decides about it."""

    active: ActiveSubnet
    layer: int
    axis: SublayerAxis
    rows_per_choice: int = 1
    """Rows of one neuron (1) or of one head."""
    choices_per_block: int = 1
    """Query heads that share one block of rows (more than 1 for grouped keys and values)."""

    @property
    def choice(self) -> int:
        """The FFN width or the query heads that this thread runs here; 0 if the sub-layer is skipped."""
        choices: tuple[int, ...] = getattr(self.active.current, self.axis)
        return choices[self.layer]

    @property
    def rows(self) -> int:
        """Output rows of the active choice."""
        return self.choice // self.choices_per_block * self.rows_per_choice


class RowNestedLinear(nn.Linear):
    """A Linear of which the active choice takes the first output rows."""

    nested: Position

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in)`` to ``(..., active rows)``."""
        rows = self.nested.rows
        if rows == self.out_features:
            return super().forward(input)
        return F.linear(input, self.weight[:rows], None if self.bias is None else self.bias[:rows])


class ColumnNestedLinear(nn.Linear):
    """A Linear that takes as many input columns as its input has; the bias is shared by all widths."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., active columns)`` to ``(..., out)``."""
        columns = input.shape[-1]
        if columns == self.in_features:
            return super().forward(input)
        return F.linear(input, self.weight[:, :columns], self.bias)


def skipped_output(skip: Skip, layer_idx: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module of a skipped sub-layer returns instead of computing.

    Attention with a key-value cache still records the new positions, as keys of width zero, because
    transformers reads the number of cached tokens from the first layer.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if skip is Skip.INPUT:
        return hidden
    if skip is Skip.RESIDUAL:
        return args[1] if len(args) > 1 else kwargs["input_tensor"]
    if skip is Skip.ZERO:
        return hidden.new_zeros(())
    cache = kwargs.get("past_key_values")
    if cache is not None and layer_idx is not None:
        batch, length = hidden.shape[:2]
        no_width = hidden.new_zeros((batch, 1, length, 0))
        cache.update(no_width, no_width, layer_idx)
    return (hidden if skip is Skip.ATTENTION_INPUT else hidden.new_zeros(()), None)


class SkippedModule(nn.Module):
    """Stands where an extracted model has no module any more: no weights, no computation."""

    def __init__(self, skip: Skip, layer_idx: int | None = None) -> None:
        super().__init__()
        self.skip = skip
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what makes the layer pass its input on."""
        return skipped_output(self.skip, self.layer_idx, args, kwargs)


@functools.cache
def skippable_class(cls: type[nn.Module], skip: Skip) -> type[nn.Module]:
    """Return a subclass of ``cls`` that does not compute while its sub-layer is skipped."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.nested.choice:
            return cls.forward(self, *args, **kwargs)
        return skipped_output(skip, getattr(self, "layer_idx", None), args, kwargs)

    return type(f"Skippable{cls.__name__}", (cls,), {"forward": forward, "__module__": __name__})


@functools.cache
def nested_layer_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a Transformer layer that can be skipped, and that pins its subnet.

    The subnet travels as an argument of the forward pass. Activation checkpointing keeps the
    arguments for its recomputation, so that runs the same subnet, in whichever thread.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.__call__(self, *args, elastic_subnet=self.nested_active.current, **kwargs)

    def forward(self: Any, *args: Any, elastic_subnet: Subnet, **kwargs: Any) -> Any:
        layer = self.nested_index
        # With a cache, the attention of a skipped layer has positions to record: see skipped_output.
        if not (elastic_subnet.heads[layer] or elastic_subnet.ffn[layer] or kwargs.get("past_key_values") is not None):
            return args[0] if args else kwargs["hidden_states"]
        if self.nested_active.current is elastic_subnet:
            return cls.forward(self, *args, **kwargs)
        with self.nested_active.use(elastic_subnet):
            return cls.forward(self, *args, **kwargs)

    body = {"__call__": call, "forward": forward, "__module__": __name__}
    return type(f"Nested{cls.__name__}", (cls,), body)
