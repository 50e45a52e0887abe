"""What a decoder costs by phase: reading a prompt, or saying one token after a context, with its key-value cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from elastic.cost.cost import Cost
from elastic.cost.model import CostModel
from elastic.errors import ElasticError
from elastic.families import get_family, max_tokens
from elastic.space import Subnet

PhaseName = Literal["prefill", "decode"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)


@dataclass(frozen=True)
class Phase:
    """One forward pass of a decoder with a key-value cache, over one text."""

    name: PhaseName
    """``prefill``: the prompt, into an empty cache. ``decode``: one token, after a context."""
    context: int
    """Tokens of the prompt, or tokens in the cache before the step."""

    def __post_init__(self) -> None:
        if self.name not in PHASES:
            raise ElasticError(f"the phase '{self.name}' is not one of {', '.join(PHASES)}.")
        if self.context < 1:
            raise ElasticError(f"context={self.context} must be 1 or more tokens.")

    def __str__(self) -> str:
        return f"a prompt of {self.context} tokens" if self.name == "prefill" else f"one token after {self.context}"

    @property
    def cached(self) -> int:
        """Tokens in the cache before the pass."""
        return self.context if self.name == "decode" else 0

    @property
    def new(self) -> int:
        """Tokens of the pass."""
        return 1 if self.name == "decode" else self.context


class DecoderCostModel(CostModel):
    """Predicts the cost of one phase of a decoder, for any subnet.

    FLOPs are those of a forward pass over the new tokens, with attention that reads the cache; the head runs at every
    token of a prompt, as in any forward pass. Memory holds the weights, the cache after the pass in the model's data
    type, and activations; the cache is taken to be written in place. Layers with a sliding window read and keep no more
    than the window.
    """

    def __init__(
        self,
        model_class: type[PreTrainedModel],
        config: PreTrainedConfig,
        phase: Phase,
        *,
        hidden: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Trace an architecture, with its residual stream cut to ``hidden`` dimensions if given.

        Memory is that of parameters, cache and activations of ``dtype``; by default of the configuration's.

        Raises:
            ElasticError: if it is no decoder, or takes fewer tokens.
        """
        family = get_family(config)
        if not family.generates:
            raise ElasticError(
                f"models of type '{config.model_type}' generate no text, so they have no phases; leave the phase out."
            )
        limit, total = max_tokens(config), phase.cached + phase.new
        if limit is not None and total > limit:
            raise ElasticError(
                f"{phase.name} at a context of {phase.context} needs {total} positions, and the model takes {limit}."
            )
        self.phase, self._past = phase, phase.cached
        self._head_dim = family.head_dim(config)
        self._windows = [_window(layer) for layer in DynamicCache(config=config).layers]
        super().__init__(model_class, config, {"input_ids": (1, phase.new)}, hidden=hidden, dtype=dtype)

    def _narrowed(self, hidden: int | None) -> DecoderCostModel:
        return DecoderCostModel(self._model_class, self._config, self.phase, hidden=hidden, dtype=self._dtype)

    def _cost(self, subnet: Subnet) -> Cost:
        stated = {"name": self.phase.name, "context": self.phase.context}
        return dataclasses.replace(super()._cost(subnet), cache_bytes=self.cache_bytes(subnet), phase=stated)

    def cache_bytes(self, subnet: Subnet) -> int:
        """Return the bytes of all keys and values after the pass."""
        numbers = 0
        for layer in subnet.kept_layers:
            tokens = self.phase.cached + self.phase.new
            if (window := self._windows[layer]) is not None:
                tokens = min(tokens, window)
            groups = subnet.heads[layer] // self._dims.heads_per_group
            # Skipped attention counts its positions: see `skipped_output`.
            numbers += tokens * (2 * groups * self._head_dim or 1)
        return numbers * self._dtype.itemsize

    def _read(self, layer: int) -> int:
        """Cached tokens that the attention of a layer reads."""
        window = self._windows[layer]
        return self.phase.cached if window is None else min(self.phase.cached, window)

    def _flops(self, subnet: Subnet) -> int:
        # Traced in the first layer. The others differ in what they read: scores, and sums of values.
        extra = sum(heads * (self._read(layer) - self._read(0)) for layer, heads in enumerate(subnet.heads))
        return super()._flops(subnet) + 4 * self.phase.new * self._head_dim * extra

    def _of_layers(self, layers: tuple[int, ...]) -> PreTrainedModel:
        model = super()._of_layers(layers)
        # A buffer, so that what attention reads from the cache is no activation.
        shape = (1, self._family.dims(self._config).heads, self.phase.cached + self.phase.new, self._head_dim)
        given = torch.empty(shape, device="meta", dtype=model.dtype)
        model.register_buffer("elastic_given", given, persistent=False)
        model.elastic_cache = GivenCache(model.config, given, self.phase.cached)  # type: ignore[assignment]
        return model

    def _pass(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
        inputs["attention_mask"] = torch.ones((1, self.phase.cached + self.phase.new), device="meta", dtype=torch.int64)
        model(**inputs, past_key_values=model.elastic_cache, use_cache=True)


class GivenCache(DynamicCache):
    """A cache that has its tokens already, and stores none: it gives attention keys and values of the right shape."""

    knows_its_length = True
    """So layers that are skipped whole need not count positions in it; an extracted model has no such layers."""

    def __init__(self, config: PreTrainedConfig, given: torch.Tensor, cached: int) -> None:
        super().__init__(config=config)
        self._given, self._cached = given, cached
        self._windows = [_window(layer) for layer in self.layers]

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the cached and the new tokens."""
        tokens, _ = self.get_mask_sizes(key_states.shape[2], layer_idx)
        given = self._given[:, : key_states.shape[1], :tokens]
        return given[..., : key_states.shape[3]], given[..., : value_states.shape[3]]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens."""
        return self._cached

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys there are, and how many have left the window."""
        window = self._windows[layer_idx]
        read = self._cached if window is None else min(self._cached, window)
        return read + query_length, self._cached - read


def _window(layer: Any) -> int | None:
    """Tokens that a layer of a cache keeps: one less than attention sees, because the new token sees itself."""
    return layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else None
