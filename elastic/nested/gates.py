"""One forward pass under routers: which rows of the batch each routed sub-layer computes.

Decisions belong to the pass. With a key-value cache they are made when the prompt is read, and lie on
the cache from then on, so that beams and interleaved requests each keep their own; the modules hold none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from transformers import Cache

from elastic.errors import ElasticError
from elastic.families import Skip

What = Literal["attention", "mlp", "block"]
GateGradient = Literal["interpolated", "straight_through"]
"""How the loss reaches routers through their dense mask.

- ``straight_through``: the derivative of the loss by the gate, where the gate is: at 0 or at 1 (Bengio et al.,
  arXiv 1308.3432; Router-Tuning, arXiv 2410.13184). It says what a little more or less of a sub-layer would change,
  not what leaving it out does.
- ``interpolated``: of each sequence, one gate on average is drawn from between 0 and 1 instead of decided, and only
  those take a gradient. Its mean is the loss with the sub-layer minus that without (the integral of the derivative from
  0 to 1, as in integrated gradients, arXiv 1703.01365; ReinMax, arXiv 2304.08612, approximates it by the ends).
"""


class GateKey(NamedTuple):
    """One gate: a sub-layer of a layer, or both of them (``block``)."""

    what: What
    layer: int

    def __str__(self) -> str:
        return f"{self.what}_{self.layer}"


@dataclass(frozen=True)
class Part:
    """The place of a module in its sub-layer."""

    before: bool = False
    """A norm that comes first: it always runs, for its output is what the router reads."""
    reads: bool = False
    """The first module with weights of the sub-layer proper: its input is the router's."""
    ends: bool = False
    """The last module."""
    on_stream: bool = False
    """Whether the sub-layer has no norm before it, so that its input is the residual stream (post-norm)."""


@dataclass(frozen=True)
class Decision:
    """Which rows one gate lets through."""

    on: torch.Tensor
    """``(batch,)``, bool."""
    gate: torch.Tensor
    """``(batch,)``: what the dense mask multiplies by; carries the gradient to the router."""
    axis: str
    """At which sub-layer it was made."""
    num_on: int
    between: torch.Tensor | None = None
    """``(batch,)``: the gates that were drawn instead, NaN for the others; see `GateGradient`."""


@dataclass
class Trace:
    """What the gates did while a `routed` block ran: one number for each row and gate that was decided.

    Rows that follow a decision on their cache are not counted again.
    """

    _gates: dict[GateKey, list[torch.Tensor]] = field(default_factory=dict)
    _scores: dict[GateKey, list[torch.Tensor]] = field(default_factory=dict)

    def note(self, key: GateKey, gate: torch.Tensor, score: torch.Tensor) -> None:
        """Add the gates and scores ``(batch,)`` of one decision."""
        self._gates.setdefault(key, []).append(gate)
        self._scores.setdefault(key, []).append(score.detach())

    @property
    def gates(self) -> dict[GateKey, torch.Tensor]:
        """The gates, 0 or 1, of all rows so far, ``(rows,)`` each; with gradients in training."""
        return {key: _joined(parts) for key, parts in sorted(self._gates.items())}

    @property
    def scores(self) -> dict[GateKey, torch.Tensor]:
        """What the routers gave, in (0, 1), ``(rows,)`` each."""
        return {key: _joined(parts) for key, parts in sorted(self._scores.items())}

    @property
    def usage(self) -> dict[GateKey, float]:
        """The share of rows that each gate let through."""
        return {key: float(gate.detach().double().mean()) for key, gate in self.gates.items()}

    @property
    def capacity(self) -> float:
        """The mean of `usage` over the gates; 1 where nothing was decided."""
        usage = self.usage
        return sum(usage.values()) / len(usage) if usage else 1.0


@dataclass(frozen=True)
class RoutedBlock:
    """What a `routed` block asks for."""

    routers: Mapping[GateKey, Callable[[torch.Tensor], torch.Tensor]]
    """From pooled inputs ``(batch, width)`` to scores ``(batch,)``."""
    threshold: float
    dense: bool | None
    trace: Trace
    gradient: GateGradient = "straight_through"


@dataclass
class RoutedPass:
    """One forward pass: its padding, its cache and its decisions."""

    block: RoutedBlock | None = None
    """None where only the cache knows of routers: a request goes on as it began."""
    mask: Any = None
    """The attention mask that the model was given."""
    dense: bool = False
    decisions: dict[GateKey, Decision] = field(default_factory=dict)
    cache: Cache | None = None
    began: bool = False
    """Whether the cache held tokens of this layer before the pass."""
    _streams: dict[str, torch.Tensor] = field(default_factory=dict)

    def enter(self, layer: int, cache: Cache | None) -> None:
        """Say which layer comes next, with the cache that it is given."""
        self.cache = cache
        self.began = cache is not None and cache.get_seq_length(layer) > 0

    def run(
        self,
        key: tuple[str, int],
        part: Part,
        skip: Skip,
        compute: Callable[..., Any],
        skipped: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run one module of a sub-layer for the rows that its gate lets through.

        Args:
            key: axis and layer of the sub-layer.
            part: the module's place in it.
            skip: what the module returns where it does not compute.
            compute: the module's own forward pass.
            skipped: from ``(args, kwargs, records)`` to what it returns instead, where ``records`` says whether
                the cache is told about the new positions.
            args: of the module.
            kwargs: of the module.
        """
        axis, layer = key
        hidden = args[0] if args else kwargs["hidden_states"]
        decision = self._decision(axis, layer, hidden if part.reads else None)
        if decision is None:
            return compute(*args, **kwargs)
        if self.dense:
            result = compute(*args, **kwargs)
            if part.reads and part.on_stream:
                self._streams[axis] = hidden
            if not part.ends:
                return result
            stream = self._streams.pop(axis, None)
            other = stream if skip is Skip.INPUT else _first(skipped(args, kwargs, records=False))
            return _with_first(result, _blend(decision.gate, _first(result), other))
        if decision.num_on == len(decision.on):
            return compute(*args, **kwargs)
        if not decision.num_on:
            return skipped(args, kwargs, records=True)
        rows = decision.on.nonzero().squeeze(1)
        take = functools.partial(_take_rows, rows=rows, batch=len(decision.on))
        result = compute(*take(args), **take(kwargs))
        other = _first(skipped(args, kwargs, records=False))
        return _put_rows(result, rows, len(decision.on), other)

    def _decision(self, axis: str, layer: int, hidden: torch.Tensor | None) -> Decision | None:
        """Return the decision of a sub-layer, made anew if ``hidden`` is given and it is its own to make."""
        what: What = "attention" if axis == "heads" else "mlp"
        key, both = GateKey(what, layer), GateKey("block", layer)
        known = self.decisions.get(key) or self.decisions.get(both)
        if hidden is None or (known is not None and known.axis != axis):
            return known
        for candidate in (key, both):
            made = self._decide(candidate, axis, hidden)
            if made is not None:
                self.decisions[candidate] = made
                return made
        return None

    def _decide(self, key: GateKey, axis: str, hidden: torch.Tensor) -> Decision | None:
        earlier = self.decisions.get(key)
        pinned = None if earlier is not None else pinned_gates(self.cache).get(key)
        if pinned is not None:
            return Decision(pinned, pinned.to(hidden.dtype), axis, int(pinned.sum()))
        router = None if self.block is None else self.block.routers.get(key)
        if router is None or self.block is None:
            return None
        score = router(self._pool(hidden))
        if earlier is not None:
            on = earlier.on  # Activation checkpointing computes again, by the same gates.
        elif self.began:
            on = torch.ones_like(score, dtype=torch.bool)  # A request that began without routers goes on without.
        else:
            on = score >= self.block.threshold
        slope = score - score.detach()  # Zero, with the derivative of the score.
        decided = gate = on.to(score.dtype) + slope
        between = self._between(score)  # Drawn again by activation checkpointing too, for the random numbers after it.
        if earlier is not None:
            between = earlier.between
        if between is not None:
            # Those that were drawn stand for the others.
            gate = torch.where(between.isnan(), decided.detach(), between + len(self.block.routers) * slope)
        if earlier is None:
            self.block.trace.note(key, decided, score)
            if self.cache is not None:
                pin_gates(self.cache, key, on)
        return Decision(on, gate, axis, int(on.sum()) if earlier is None else earlier.num_on, between)

    def _between(self, score: torch.Tensor) -> torch.Tensor | None:
        """Draw one gate in so many as there are from between 0 and 1; the others are NaN, which means: as decided."""
        if self.block is None or not self.dense or self.block.gradient == "straight_through":
            return None
        drawn = torch.rand_like(score) * len(self.block.routers) < 1.0
        return torch.rand_like(score).where(drawn, torch.nan)

    def _pool(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens that are no padding: ``(batch, width)``, in float32."""
        if self.mask is None:
            return hidden.float().mean(1)
        weights = _valid_tokens(self.mask, hidden.shape[1]).to(device=hidden.device, dtype=torch.float32).unsqueeze(-1)
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _valid_tokens(mask: Any, tokens: int) -> torch.Tensor:
    """Return ``(batch, tokens)``, 0 where there is padding, from any mask that models take.

    That is ``(batch, all tokens so far)``, or which query sees which key, ``(batch, 1, queries, keys)``, as generation
    with a static cache prepares it before the first token: padding is what no query sees.
    """
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask[:, -tokens:]
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        seen = mask if mask.dtype == torch.bool else mask >= 0
        return seen.any(2).any(1)[:, :tokens]
    raise ElasticError(
        "routers read the padding from an attention mask of shape (batch, tokens) or (batch, 1, queries, keys), and "
        "this one is neither."
    )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def _with_first(result: Any, first: torch.Tensor) -> Any:
    return (first, *result[1:]) if isinstance(result, tuple) else first


def _blend(gate: torch.Tensor, computed: torch.Tensor, skipped: torch.Tensor | None) -> torch.Tensor:
    gate = gate.to(computed.dtype).view(-1, *(1,) * (computed.ndim - 1))
    if skipped is None or skipped.numel() == 1:  # Nothing to add.
        return gate * computed
    return gate * computed + (1.0 - gate) * skipped.to(computed.dtype)


def _take_rows(value: Any, *, rows: torch.Tensor, batch: int) -> Any:
    """Return the rows of everything that has one for each example."""
    take = functools.partial(_take_rows, rows=rows, batch=batch)
    if isinstance(value, torch.Tensor):
        return value.index_select(0, rows) if value.ndim > 1 and len(value) == batch else value
    if isinstance(value, Cache):
        return _RowsOfCache(value, rows, batch)
    if isinstance(value, tuple | list):
        return type(value)(map(take, value))
    return {name: take(item) for name, item in value.items()} if isinstance(value, dict) else value


def _put_rows(result: Any, rows: torch.Tensor, batch: int, other: torch.Tensor | None = None) -> Any:
    """Return results of some rows in their places; in the others stands ``other``, or zero."""
    if isinstance(result, tuple):
        first, *rest = result
        return (_put_rows(first, rows, batch, other), *(_put_rows(item, rows, batch) for item in rest))
    if not isinstance(result, torch.Tensor):
        return result
    shape = (batch, *result.shape[1:])
    base = result.new_zeros(shape) if other is None or other.shape != shape else other.to(result.dtype)
    return base.index_copy(0, rows, result)


class _RowsOfCache:
    """A cache seen by the rows of a batch that compute; of the others it records zeros."""

    def __init__(self, cache: Cache, rows: torch.Tensor, batch: int) -> None:
        self._cache, self._rows, self._batch = cache, rows, batch

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        whole = (_put_rows(tensor, self._rows, self._batch) for tensor in (keys, values))
        return tuple(tensor.index_select(0, self._rows) for tensor in self._cache.update(*whole, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


# Decisions on a cache


def pinned_gates(cache: Cache | None) -> dict[GateKey, torch.Tensor]:
    """Return the decisions that a cache carries: ``(batch,)`` bools."""
    return getattr(cache, "elastic_gates", {})


def pin_gates(cache: Cache, key: GateKey, on: torch.Tensor) -> None:
    """Keep a decision on a cache: what happens to its rows happens to the decision too."""
    if not hasattr(cache, "elastic_gates"):
        cache.__class__ = _gated_class(type(cache))  # type: ignore[arg-type]
        cache.elastic_gates = {}  # type: ignore[attr-defined]
    cache.elastic_gates[key] = on  # type: ignore[attr-defined]


@functools.cache
def _gated_class(cls: type[Cache]) -> type[Cache]:
    """Return a subclass of a cache class whose gates follow the batch."""

    def following(name: str, change: Callable[[torch.Tensor, Any], torch.Tensor]) -> Callable[[Any, Any], None]:
        def method(self: Any, how: Any) -> None:
            getattr(cls, name)(self, how)
            self.elastic_gates = {key: change(on, how) for key, on in self.elastic_gates.items()}

        return method

    def reset(self: Any) -> None:
        cls.reset(self)
        self.elastic_gates = {}

    def select(on: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return on[indices.to(on.device)]

    body: dict[str, Any] = {
        "reorder_cache": following("reorder_cache", select),
        "batch_select_indices": following("batch_select_indices", select),
        "batch_repeat_interleave": following("batch_repeat_interleave", lambda on, n: on.repeat_interleave(n)),
        "reset": reset,
        "__module__": __name__,
    }
    return type(f"Gated{cls.__name__}", (cls,), body)
