"""Self-speculative decoding: a subnet drafts on the key-value cache of the model that verifies it.

Speculative decoding (arXiv 2211.17192) in its greedy form. The drafts are nested widths whose attention is the target's
(MatFormer, arXiv 2310.07707, section 4.1.1), exits (LayerSkip, arXiv 2404.16710), or both: the draft reads the keys and
values that the target has computed, so it needs neither a pass over the prompt nor a cache of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from elastic.errors import ElasticError, SpaceError
from elastic.families import max_tokens
from elastic.nested import active, evaluating, get_elastic
from elastic.space import Subnet, check_subnet


@dataclass(frozen=True)
class Speculation:
    """Generated tokens, and how well they were drafted."""

    sequences: torch.Tensor
    """``(1, prompt + new tokens)``, prompt included, as ``generate`` returns them."""
    drafted: tuple[int, ...]
    """How many tokens each draft proposed."""
    accepted: tuple[int, ...]
    """How many of them were what the target would have said."""
    target_passes: int
    """Forward passes of the target, that over the prompt included; greedy decoding needs one for each new token."""

    @property
    def num_drafts(self) -> int:
        """How often a draft was verified."""
        return len(self.drafted)

    @property
    def accepted_per_draft(self) -> float:
        """Mean number of accepted tokens of a draft; 0 without drafts."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted among drafted tokens; 0 without drafts."""
        return sum(self.accepted) / sum(self.drafted) if self.drafted else 0.0


def speculative_generate(
    model: PreTrainedModel,
    draft: Subnet,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    target: Subnet | None = None,
    max_new_tokens: int = 128,
    num_draft: int = 4,
    eos_token_id: int | Sequence[int] | None = None,
) -> Speculation:
    """Generate what the target would generate greedily, with ``draft`` proposing tokens that the target verifies.

    The draft continues on the target's own cache; what it wrote there is dropped before the target computes the same
    positions in one forward pass. The longest prefix of the draft that the target agrees with is kept, and the token
    that the target says after it. So the tokens are those of ``model.generate(do_sample=False)`` without logits
    processors, up to the rounding of a forward pass over several tokens instead of one: it can decide between two
    tokens that are equally likely.

    Args:
        model: an elastic decoder.
        draft: the subnet that proposes; in every layer its heads are the target's or none.
        input_ids: the prompt, ``(1, tokens)``.
        attention_mask: ``(1, tokens)``, 0 where the prompt is padded; on the left, as for ``generate``.
        target: the subnet that verifies; without one, the active subnet.
        max_new_tokens: how many tokens are generated at most.
        num_draft: how many tokens the draft proposes before the target looks at them.
        eos_token_id: token or tokens that end the text; without, those of ``model.generation_config``.

    Raises:
        SpaceError: if the model cannot run a subnet, or the draft cannot share the cache of the target.
        ElasticError: if the model is no elastic decoder, the batch is not 1, the text is longer than the model takes,
            or the installed transformers cannot take back what a sliding window has dropped.
    """
    elastic = get_elastic(model)
    target = target or elastic.active.current
    _check_prompt(model, input_ids, attention_mask, max_new_tokens, num_draft)
    for subnet in (draft, target):
        check_subnet(subnet, elastic.dims)
    cache = _new_cache(model)
    check_draft(draft, target, [bool(getattr(layer, "is_sliding", False)) for layer in cache.layers])
    decoder = _Decoder(model, cache, input_ids, attention_mask, max_new_tokens)
    ends = _end_tokens(model, eos_token_id)
    drafted, accepted = [], []
    with torch.no_grad(), evaluating(model):
        with active(model, target):
            tokens = [decoder.prefill()]
        while len(tokens) < max_new_tokens and tokens[-1] not in ends:
            known = decoder.num_cached
            with active(model, draft):
                # The target adds a token of its own to every draft.
                proposed = decoder.propose(tokens[-1], min(num_draft, max_new_tokens - len(tokens) - 1), ends)
            decoder.crop(known)
            with active(model, target):
                said = decoder.step([tokens[-1], *proposed])
            agreed = next((i for i, token in enumerate(proposed) if token != said[i]), len(proposed))
            decoder.crop(known + 1 + agreed)
            tokens += _up_to_end(said[: agreed + 1], ends)
            if proposed:
                drafted.append(len(proposed))
                accepted.append(agreed)
    new = torch.tensor([tokens], dtype=input_ids.dtype, device=input_ids.device)
    return Speculation(torch.cat([input_ids, new], dim=1), tuple(drafted), tuple(accepted), decoder.target_passes)


def check_draft(draft: Subnet, target: Subnet, is_sliding: Sequence[bool] | None = None) -> None:
    """Check that a draft can use the key-value cache of its target.

    Args:
        draft: the subnet that proposes.
        target: the subnet that verifies.
        is_sliding: for each layer, whether its attention has a sliding window; without, none has.

    Raises:
        SpaceError: if the streams differ in width, an attention differs (names the layer), or the draft skips the first
            attention of its kind, at which transformers counts the cached tokens.
    """
    if draft.hidden != target.hidden:
        raise SpaceError(
            "the draft's residual stream is not as wide as the target's, so they cannot share a cache; extract the "
            "draft, and give it to model.generate(assistant_model=...)."
        )
    for layer, (mine, theirs) in enumerate(zip(draft.heads, target.heads, strict=True)):
        if mine not in (0, theirs):
            raise SpaceError(
                f"the draft has {mine} query heads in layer {layer}, and the target {theirs}; to share a cache, give "
                "the draft the target's heads in every layer that it keeps."
            )
    is_sliding = is_sliding or [False] * target.num_layers
    for kind in set(is_sliding):
        layers = [layer for layer, sliding in enumerate(is_sliding) if sliding is kind]
        first = layers[0]
        if target.heads[first] and not draft.heads[first] and any(draft.heads[layer] for layer in layers):
            raise SpaceError(
                f"the draft skips the attention of layer {first}, at which the cached tokens are counted; keep it, and "
                "skip later layers."
            )


class _Decoder:
    """Runs the active subnet over new tokens of one text, on one cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        max_new_tokens: int,
    ) -> None:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
        self._model, self._cache, self._prompt = model, cache, input_ids
        self._mask = torch.cat([mask, mask.new_ones((1, max_new_tokens))], dim=1)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.num_cached = 0
        self.target_passes = 0

    def prefill(self) -> int:
        """Read the prompt, and return the token after it."""
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        logits = self._forward(self._prompt, **options)
        self.target_passes += 1
        self.crop(self.num_cached)
        return int(_greedy(logits[0, -1]))

    def step(self, tokens: Sequence[int]) -> list[int]:
        """Read tokens as the target, and return what follows each of them."""
        self.target_passes += 1
        return self._next(tokens)

    def propose(self, token: int, count: int, ends: frozenset[int]) -> list[int]:
        """Continue ``token`` one by one as the draft, and return the continuation."""
        proposed: list[int] = []
        while len(proposed) < count and token not in ends:
            (token,) = self._next([token])
            proposed.append(token)
        return proposed

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions; sliding windows also forget what has left them."""
        layers: list[Any] = self._cache.layers
        for layer in layers:
            # Each by itself: layers after an exit have not recorded what was drafted.
            layer.crop(min(length - layer.get_seq_length(), 0))
        self.num_cached = length

    def _next(self, tokens: Sequence[int]) -> list[int]:
        logits = self._forward(torch.tensor([tokens], dtype=self._prompt.dtype, device=self._prompt.device))
        return [int(token) for token in _greedy(logits[0])]

    def _forward(self, input_ids: torch.Tensor, **options: int) -> torch.Tensor:
        start, end = self.num_cached, self.num_cached + input_ids.shape[1]
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._mask[:, :end],
            position_ids=self._positions[:, start:end],
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        self.num_cached = end
        return output.logits  # type: ignore[no-any-return]


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest tokens, in the precision in which ``generate`` compares them."""
    return logits.float().argmax(-1).cpu()


def _up_to_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: last + 1])


def _end_tokens(model: PreTrainedModel, given: int | Sequence[int] | None) -> frozenset[int]:
    if given is None:
        given = model.generation_config.eos_token_id
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
    elif any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        raise ElasticError(
            "this model has sliding-window attention, and the caches of this version of transformers cannot take back "
            "what has left the window; install a newer transformers, or use model.generate."
        )
    return cache


def _check_prompt(
    model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor | None, max_new_tokens: int, num_draft: int
) -> None:
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ElasticError(f"{type(model).__name__} generates no text; speculative decoding needs a decoder.")
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        shape = "x".join(map(str, input_ids.shape))
        raise ElasticError(f"speculative decoding takes one prompt at a time, of shape 1xtokens, not {shape}.")
    if mask is not None and mask.shape != input_ids.shape:
        shape = "x".join(map(str, mask.shape))
        raise ElasticError(f"the attention mask is {shape}, and the prompt 1x{input_ids.shape[1]}.")
    for name, value in (("max_new_tokens", max_new_tokens), ("num_draft", num_draft)):
        if value < 1:
            raise ElasticError(f"{name}={value} must be 1 or more.")
    limit, total = max_tokens(model.config), input_ids.shape[1] + max_new_tokens
    if limit is not None and total > limit:
        raise ElasticError(
            f"a prompt of {input_ids.shape[1]} tokens and {max_new_tokens} new ones are more than the {limit} that the "
            f"model takes; lower max_new_tokens to {max(limit - input_ids.shape[1], 0)}."
        )
