"""What Elastic must know of an architecture: where its layers and projections are, and how a sub-layer is skipped."""

from __future__ import annotations

import copy
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elastic.errors import FamilyError
from elastic.space import ModelDims

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class Skip(str, enum.Enum):
    """What a module returns when its sub-layer is skipped, so that the layer passes its input on."""

    INPUT = "input"
    """Its input: norms before a sub-layer, and the first half of a sub-layer in two modules."""
    ZERO = "zero"
    """Nothing to add: MLPs whose residual is added outside."""
    RESIDUAL = "residual"
    """Its second argument: output modules that add the residual themselves."""
    ATTENTION_ZERO = "attention_zero"
    """``(nothing to add, no weights)``: attention whose residual is added outside."""
    ATTENTION_INPUT = "attention_input"
    """``(its input, no weights)``: attention that adds the residual itself."""


@dataclass(frozen=True)
class Block:
    """Rows (or columns) of one projection along an elastic axis: unit after unit, so that fewer units are a prefix."""

    start: int
    num_units: int
    """Neurons, or key-value groups: heads that leave together."""
    size: int
    """Rows of one unit: 1 of a neuron, the head size times the group's heads of a key-value group."""

    def rows(self, num_units: int) -> slice:
        """Return the rows of the first ``num_units`` units."""
        return slice(self.start, self.start + num_units * self.size)


@dataclass(frozen=True)
class Projection:
    """A linear layer along an elastic axis, by its path inside one layer.

    A path that is named several times is a fused projection: its blocks lie one after the other, in this order.
    """

    path: str
    shared_by_group: bool = False
    """Whether one head of it serves a whole group of query heads (keys and values)."""


class HeadSize(enum.Enum):
    """Which size of its heads an attention module reads from an attribute while it runs."""

    HEADS = "heads"
    KV_HEADS = "kv_heads"
    WIDTH = "width"
    """Heads times the size of one."""


@dataclass(frozen=True)
class Family:
    """An architecture, declared: adding one is writing one of these.

    Paths are relative to one layer; ``layers`` is relative to the base model.
    """

    model_type: str
    layers: str
    head_inputs: tuple[Projection, ...]
    """Projections whose output rows are heads: query, key, value."""
    head_output: str
    """The projection whose input columns are heads."""
    ffn_inputs: tuple[str, ...]
    """Projections whose output rows are neurons: up, and gate where there is one."""
    ffn_output: str
    """The projection whose input columns are neurons."""
    skip_attention: Mapping[str, Skip]
    """The modules of the attention sub-layer, with what each returns when it is skipped."""
    skip_mlp: Mapping[str, Skip]
    """The modules of the MLP sub-layer, with what each returns when it is skipped."""
    config_has_head_dim: bool
    """Whether a stock configuration can hold fewer heads of the same size."""
    heads_divide_hidden: bool = False
    """Whether a stock configuration refuses head counts that do not divide the hidden size."""
    config_has_ffn: bool = True
    """Whether a stock configuration can hold another FFN width (not where a head outside of the layers has it too)."""
    ffn_field: str = "intermediate_size"
    ffn_is_ratio: bool = False
    """Whether the configuration gives the FFN width as a multiple of the hidden size."""
    heads_field: str = "num_attention_heads"
    kv_heads_field: str | None = None
    layers_field: str = "num_hidden_layers"
    config_part: str | None = None
    """The part of the configuration that describes the layers, where it has parts."""
    hidden_fixed: str | None = None
    """Why the residual stream keeps its width, where it does."""
    hidden_too: tuple[str, ...] = ()
    """Configuration fields that are the width of the stream where they equal the hidden size, and another one else."""
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Configuration fields with one entry for each layer."""
    derived_fields: tuple[str, ...] = ()
    """Configuration fields that follow from the number of layers."""
    head_sizes: Mapping[str, HeadSize] = field(default_factory=dict)
    """Attributes that attention reads while it runs, by their path inside one layer, with what they must be."""
    heads_together: str | None = None
    """Why all heads of an attention stay or leave together, where they do."""
    first_layer_lacks: Mapping[str, str] = field(default_factory=dict)
    """Modules that the first layer does without, each with a module of the same kind in the same layer."""
    scales_before_adding: bool = False
    """Whether a norm or a scale lies between a sub-layer's output projection and the stream that it is added to."""
    layer_returns_tuple: bool = False
    generates: bool = False
    """Whether it is a decoder that generates text."""
    model_classes: tuple[str, ...] = ()
    """The only classes of this type that are supported; all if empty."""
    unsupported: Mapping[str, str] | None = None
    """Configuration flags that must be false, with what they stand for."""

    def body_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the part of a configuration that describes the layers."""
        return getattr(config, self.config_part) if self.config_part else config  # type: ignore[no-any-return]

    def dims(self, config: PreTrainedConfig) -> ModelDims:
        """Return the sizes of a model with this configuration."""
        config = self.body_config(config)
        heads = getattr(config, self.heads_field)
        kv_heads = getattr(config, self.kv_heads_field) if self.kv_heads_field else heads
        return ModelDims(
            num_layers=getattr(config, self.layers_field),
            ffn=self.ffn(config),
            heads=heads,
            kv_heads=1 if self.heads_together else kv_heads,
            hidden=config.hidden_size,
            hidden_fixed=self.hidden_fixed,
            heads_together=self.heads_together,
        )

    def ffn(self, body: PreTrainedConfig) -> int:
        """Return the FFN width that a body's configuration states or implies."""
        value = getattr(body, self.ffn_field)
        if self.ffn_is_ratio:
            return int(body.hidden_size * value)
        return int(4 * body.hidden_size if value is None else value)

    def ffn_value(self, ffn: int, hidden: int) -> int | float:
        """Return what the configuration's FFN field says for this width, at this hidden size."""
        if not self.ffn_is_ratio:
            return ffn
        ratio = ffn / hidden
        return int(ratio) if ratio.is_integer() else ratio

    def hidden_fields(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Return the configuration fields that are the width of the stream, here."""
        body = self.body_config(config)
        return ("hidden_size", *(name for name in self.hidden_too if getattr(body, name) == body.hidden_size))

    def at_hidden(self, config: PreTrainedConfig, hidden: int) -> PreTrainedConfig:
        """Return a copy of a configuration with another hidden size, and heads of the same size where it can say so."""
        result = copy.deepcopy(config)
        if self.config_has_head_dim:
            self.body_config(result).head_dim = self.head_dim(config)
        for name in self.hidden_fields(config):
            setattr(self.body_config(result), name, hidden)
        return result

    def head_dim(self, config: PreTrainedConfig) -> int:
        """Return the size of one head."""
        config = self.body_config(config)
        explicit = getattr(config, "head_dim", None) if self.config_has_head_dim else None
        return int(explicit or config.hidden_size // getattr(config, self.heads_field))

    def head_blocks(self, config: PreTrainedConfig) -> dict[str, tuple[Block, ...]]:
        """Return where the key-value groups lie in the rows of each projection into the heads."""
        dims, head_dim = self.dims(config), self.head_dim(config)
        grouped = head_dim * dims.heads_per_group
        shared = grouped if self.heads_together else head_dim
        sizes = [(p.path, shared if p.shared_by_group else grouped) for p in self.head_inputs]
        return _blocks(sizes, dims.kv_heads)

    def ffn_blocks(self, config: PreTrainedConfig) -> dict[str, tuple[Block, ...]]:
        """Return where the neurons lie in the rows of each projection into the FFN."""
        return _blocks([(path, 1) for path in self.ffn_inputs], self.dims(config).ffn)

    def find_layers(self, model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
        """Return the path of the layer list inside the model, and the list.

        Raises:
            FamilyError: if the model has no such list.
        """
        prefix = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
        path = f"{prefix}.{self.layers}".strip(".")
        try:
            return path, model.get_submodule(path)  # type: ignore[return-value]
        except AttributeError:
            raise FamilyError(
                f"{type(model).__name__} has no layers at '{path}', as '{self.model_type}' models have; Elastic "
                "supports the stock classes of transformers."
            ) from None


def _blocks(sizes: Sequence[tuple[str, int]], num_units: int) -> dict[str, tuple[Block, ...]]:
    found: dict[str, tuple[Block, ...]] = {}
    for path, size in sizes:
        before = found.get(path, ())
        start = sum(block.num_units * block.size for block in before)
        found[path] = (*before, Block(start, num_units, size))
    return found
