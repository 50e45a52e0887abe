"""Decoders with a key-value cache: one graph that takes a prompt, and then one token after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from elastic.errors import FamilyError
from elastic.families import get_family, num_inputs
from elastic.nested import SkippedModule

from .runtime.manifest import PAST, PRESENT, TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CachedLayer:
    """What one layer keeps of a token: a key and a value for each key-value head."""

    index: int
    heads: int
    key_dim: int
    value_dim: int

    def specs(self, prefix: str, length: str) -> tuple[TensorSpec, TensorSpec]:
        """Return key and value as inputs or outputs of the graph."""
        name, shape = f"{prefix}.{self.index}", ("batch", self.heads, length)
        return (
            TensorSpec(f"{name}.key", "float32", (*shape, self.key_dim)),
            TensorSpec(f"{name}.value", "float32", (*shape, self.value_dim)),
        )


@dataclass(frozen=True)
class DecoderInputs:
    """New tokens, a mask over cached and new tokens, and the cache; all lengths are free, the cache may be empty.

    Positions follow from the mask, so that padding may be on either side.
    """

    vocab_size: int
    pad_id: int
    max_length: int | None
    layers: tuple[CachedLayer, ...]
    """The layers that have attention."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""
        ids = TensorSpec("input_ids", "int64", ("batch", "sequence"))
        mask = TensorSpec("attention_mask", "int64", ("batch", "total"))
        return (ids, mask, *(spec for layer in self.layers for spec in layer.specs(PAST, "past")))

    @property
    def max_sizes(self) -> dict[str, int]:
        """Upper limits of the free dimensions."""
        return {} if self.max_length is None else {"sequence": self.max_length, "total": self.max_length}

    def parity_sizes(self) -> list[dict[str, int]]:
        """Return the sizes at which graph and model are compared: prompts, single tokens, and several at once."""
        limit = self.max_length or 128
        wanted = ((1, 7, 0), (3, 33, 0), (2, 1, 12), (1, 1, 40), (3, 5, 9))
        sizes = []
        for batch, sequence, past in wanted:
            sequence = min(sequence, limit)
            past = min(past, limit - sequence)
            sizes.append({"batch": batch, "sequence": sequence, "past": past, "total": past + sequence})
        return sizes

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
        """Draw inputs of these sizes; rows are padded at the end of a prompt, or at the beginning of what is cached."""
        rng = np.random.default_rng(seed)
        batch, sequence, past = sizes["batch"], sizes["sequence"], sizes["past"]
        total = past + sequence
        ids = rng.integers(0, self.vocab_size, (batch, sequence), dtype=np.int64)
        lengths = (past or sequence) * np.arange(batch) // (batch + 1)
        columns = np.arange(total)
        mask = columns >= lengths[:, None] if past else columns < total - lengths[:, None]
        ids = np.where(mask[:, past:], ids, self.pad_id)
        arrays: dict[str, Array] = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        for spec in self.specs[2:]:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32)
        return arrays

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        cache = GivenCache({layer.index: _key_and_value(tensors, layer) for layer in self.layers})
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }

    def further_outputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the cache after the forward pass."""
        cached: GivenCache = arguments["past_key_values"]
        found = {}
        for layer in self.layers:
            key, value = (spec.name for spec in layer.specs(PRESENT, "total"))
            found[key], found[value] = cached.get(layer.index)
        return found


def _key_and_value(tensors: Mapping[str, torch.Tensor], layer: CachedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = layer.specs(PAST, "past")
    return tensors[key.name], tensors[value.name]


class GivenCache(Cache):
    """A cache that is given, in which layers without attention have no entry.

    Transformers reads the number of cached tokens from the first layer; here it is that of the first one with
    attention. All layers keep all tokens, those with a sliding window as well: their masks leave the rest out.
    """

    def __init__(self, cached: Mapping[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        layers = [DynamicLayer() for _ in range(max(cached) + 1)]
        super().__init__(layers=list(layers))
        self.first = min(cached)
        self.kept = set(cached)
        for index, (key, value) in cached.items():
            layers[index].lazy_initialization(key, value)
            layers[index].keys, layers[index].values = key, value

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of one layer with attention."""
        layer: Any = self.layers[index]
        return layer.keys, layer.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to one layer; what a layer without attention records is dropped."""
        if layer_idx not in self.kept:
            return key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens were given."""
        return self.get(self.first)[0].shape[-2]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the first new token."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys there are with the new tokens, and the position of the first."""
        return self.get_seq_length() + query_length, 0


def cached_layers(model: PreTrainedModel) -> tuple[CachedLayer, ...]:
    """Return what each layer of a decoder keeps; nothing if the model does not generate text, or has no attention."""
    try:
        family = get_family(model.config)
    except FamilyError:
        return ()
    if not family.generates or model.get_output_embeddings() is None:
        return ()
    dims = family.dims(model.config)
    layers = family.find_layers(model)[1]
    attention = family.head_output.partition(".")[0]
    found: list[CachedLayer] = []
    for index, layer in enumerate(layers):
        module: Any = layer.get_submodule(attention)
        if isinstance(module, SkippedModule):
            continue
        output: Any = layer.get_submodule(family.head_output)
        heads = num_inputs(output) // module.head_dim // dims.heads_per_group
        found.append(CachedLayer(index, heads, module.head_dim, module.head_dim))
    return tuple(found)
