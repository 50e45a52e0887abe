"""Samplers: which subnets a training step runs. Stateless, so ranks agree and a resumed run continues.

The subnets of a step come largest first: it is the teacher of in-place distillation, and others may be
read from its forward pass (see `elastic.training.passes`).
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from elastic.errors import SpaceError
from elastic.space import ResolvedSpace, Subnet


class Sampler(Protocol):
    """Chooses the subnets of a step; the same for the same arguments, in every process."""

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the subnets of one batch.

        Args:
            step: optimizer steps done so far.
            micro_step: which of the batches that are accumulated into this step, from 0.
        """
        ...


def generator(seed: int, step: int, micro_step: int = 0) -> random.Random:
    """Return a random generator that depends on its arguments alone."""
    return random.Random(f"elastic-{seed}-{step}" + (f"-{micro_step}" if micro_step else ""))


@dataclass(frozen=True)
class Uniform:
    """One of some subnets a step: MatFormer as published (arXiv 2310.07707, section 3.2).

    With ``weights``, one is drawn as often as its weight says (the same paper's appendix: more of the largest). With
    ``mixed``, the published method trains some of what it cuts afterwards: subnets between the named ones.
    """

    subnets: Sequence[Subnet]
    seed: int = 0
    weights: Sequence[float] | None = None
    mixed: float = 0.0
    """How often it is a random subnet of the space instead, free in every layer."""
    space: ResolvedSpace | None = None
    """Where ``mixed`` draws from."""

    def __post_init__(self) -> None:
        _require(self.subnets)
        _check_weights(self.weights, len(self.subnets))
        if self.mixed and self.space is None:
            raise SpaceError("mixed subnets need the space that they are drawn from.")

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one subnet, the same for all micro-steps of a step."""
        rng = generator(self.seed, step)
        # Without mixing nothing more is drawn, so older runs stay as they were.
        if self.mixed and self.space is not None and rng.random() < self.mixed:
            return [self.space.sample(rng)]
        return rng.choices(self.subnets, self.weights) if self.weights else [rng.choice(self.subnets)]


@dataclass(frozen=True)
class Joint:
    """All of some subnets every step, their losses averaged.

    MatFormer's released code adds the losses up instead; the mean keeps the learning rate and the
    clipping threshold meaning what they mean for one model. Over pairs of exit and dimensions, these are Starbucks'
    fixed sizes (arXiv 2410.13230, section 3.1).
    """

    subnets: Sequence[Subnet]

    def __post_init__(self) -> None:
        _require(self.subnets)

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return all subnets, the largest first."""
        return sorted(self.subnets, key=_size, reverse=True)


@dataclass(frozen=True)
class Strata:
    """One subnet of each size class: between one a step (`Uniform`) and all of them (`Joint`), in cost and in quality.

    The subnets are sorted by size and split into ``num`` classes of about as many; each step draws one of each.
    """

    subnets: Sequence[Subnet]
    num: int = 2
    seed: int = 0
    _classes: tuple[tuple[Subnet, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _require(self.subnets)
        if not 1 <= self.num <= len(self.subnets):
            raise SpaceError(f"{len(self.subnets)} subnets cannot be split into {self.num} size classes.")
        ranked = sorted(self.subnets, key=_size, reverse=True)
        bounds = [len(ranked) * index // self.num for index in range(self.num + 1)]
        classes = tuple(tuple(ranked[a:b]) for a, b in itertools.pairwise(bounds))
        object.__setattr__(self, "_classes", classes)

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one subnet of each class, the largest first."""
        rng = generator(self.seed, step)
        return [rng.choice(one) for one in self._classes]


@dataclass(frozen=True)
class Random:
    """One random subnet of the space, free in every layer: AutoFormer (arXiv 2107.00651, section 3.3).

    With ``per_micro_step``, each batch that is accumulated into a step draws its own, as SortedNet does (arXiv
    2309.00255, section 3.2).
    """

    space: ResolvedSpace
    seed: int = 0
    per_micro_step: bool = False
    largest: float = 0.0
    """How often it is the largest instead, so that this one is not left to chance."""

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one subnet."""
        rng = generator(self.seed, step, micro_step if self.per_micro_step else 0)
        return [self.space.largest if rng.random() < self.largest else self.space.sample(rng)]


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and ``num_random`` random subnets (US-Nets, arXiv 1903.05134, section 3.2).

    ``also`` are others that run in every step.
    """

    space: ResolvedSpace
    num_random: int = 2
    seed: int = 0
    also: Sequence[Subnet] = ()
    _ends: tuple[Subnet, Subnet] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", (self.space.largest, self.space.smallest))

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the largest first, then those of every step, the random ones, and the smallest."""
        rng = generator(self.seed, step)
        largest, smallest = self._ends
        drawn = [self.space.sample(rng) for _ in range(self.num_random)]
        return [largest, *(subnet for subnet in self.also if subnet not in self._ends), *drawn, smallest]


@dataclass(frozen=True)
class ExitPairs:
    """A random exit and a random number of dimensions, alone and together, beside the whole: 2DMSE.

    Four losses a step, from one forward pass (arXiv 2402.14776, version 1, section 3).
    """

    space: ResolvedSpace
    seed: int = 0

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the largest, it with fewer dimensions, an exit, and the exit with fewer dimensions."""
        rng = generator(self.seed, step)
        exit_layer = rng.choice(self.space.exit[:-1] or self.space.exit)
        dimensions = rng.choice(self.space.embedding_dim[:-1] or self.space.embedding_dim)
        subnets = [
            self.space.largest,
            self.space.uniform(embedding_dim=dimensions),
            self.space.uniform(exit=exit_layer),
            self.space.uniform(exit=exit_layer, embedding_dim=dimensions),
        ]
        return list(dict.fromkeys(subnets))


Ramp = Literal["flat", "linear", "exponential"]


@dataclass(frozen=True)
class LayerDrop:
    """Each layer is left out with some probability: LayerDrop (arXiv 1909.11556, section 3.1).

    Flat, the probability is ``rate`` for all layers; with a ramp it grows from 0 in the first to ``rate`` in the last
    (linear: Stochastic Depth, arXiv 1603.09382; exponential: LayerSkip, arXiv 2404.16710, equation 2). One mask a
    step, so that all ranks and the recomputation of activations agree; a step keeps one layer at least.

    ``exits`` adds early exits of the thinned model to the step, every one of them, or with ``rotation`` r each
    every r-th step (LayerSkip's rotational curriculum).
    """

    space: ResolvedSpace
    rate: float = 0.2
    seed: int = 0
    ramp: Ramp = "flat"
    exits: Sequence[int] = ()
    rotation: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise SpaceError(f"the drop rate {self.rate} must lie in [0, 1).")

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one thinned subnet, and its exits of this step, the last first."""
        largest, rng = self.space.largest, generator(self.seed, step)
        layers = largest.kept_layers
        dropped = {layer for place, layer in enumerate(layers) if rng.random() < self._rate(place, len(layers))}
        if len(dropped) == len(layers):
            dropped.remove(rng.choice(layers))
        thinned = without_layers(largest, dropped)
        ends = [end for place, end in enumerate(sorted(self.exits)) if (place + step) % self.rotation == 0]
        exits = [without_layers(thinned, range(end, thinned.num_layers)) for end in reversed(ends)]
        return list(dict.fromkeys([thinned, *(subnet for subnet in exits if subnet.kept_layers)]))

    def _rate(self, place: int, num_layers: int) -> float:
        depth = place / max(num_layers - 1, 1)
        return self.rate * {"flat": 1.0, "linear": depth, "exponential": math.exp(depth * math.log(2)) - 1}[self.ramp]


def without_layers(subnet: Subnet, layers: Sequence[int] | range | set[int]) -> Subnet:
    """Return the subnet with these layers skipped."""
    kept = [layer not in layers for layer in range(subnet.num_layers)]
    return Subnet(
        tuple(ffn if keep else 0 for ffn, keep in zip(subnet.ffn, kept, strict=True)),
        tuple(heads if keep else 0 for heads, keep in zip(subnet.heads, kept, strict=True)),
        subnet.hidden,
        subnet.embedding_dim,
    )


@dataclass(frozen=True)
class Buckets:
    """One random subnet a step, evenly over the range of costs: resource-constrained sampling.

    A plain draw is nearly always of middling cost. Here a bucket of costs is drawn first, then a subnet in it
    (SN-Netv2, arXiv 2307.00154, section 3.2).
    """

    space: ResolvedSpace
    cost: Callable[[Subnet], float]
    """Such as the FLOPs of a subnet."""
    num_buckets: int = 8
    weights: Sequence[float] | None = None
    """How often each bucket is drawn, the cheapest first; evenly by default."""
    seed: int = 0
    pool_size: int = 1024
    _buckets: tuple[tuple[Subnet, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_weights(self.weights, self.num_buckets)
        rng = generator(self.seed, -1)
        pool = {self.space.largest, self.space.smallest, *(self.space.sample(rng) for _ in range(self.pool_size))}
        costs = {subnet: self.cost(subnet) for subnet in sorted(pool, key=lambda s: (_size(s), str(s)))}
        low, high = min(costs.values()), max(costs.values())
        edges = [low + (high - low) * (index + 1) / self.num_buckets for index in range(self.num_buckets - 1)]
        buckets: list[list[Subnet]] = [[] for _ in range(self.num_buckets)]
        for subnet, cost in costs.items():
            buckets[bisect.bisect_left(edges, cost)].append(subnet)
        object.__setattr__(self, "_buckets", tuple(tuple(bucket) for bucket in buckets))

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one subnet."""
        rng = generator(self.seed, step)
        weights = self.weights or [1.0] * self.num_buckets
        full = [weight if bucket else 0.0 for weight, bucket in zip(weights, self._buckets, strict=True)]
        (bucket,) = rng.choices(self._buckets, full)
        return [rng.choice(bucket)]


@dataclass(frozen=True)
class Stages:
    """One sampler after the other: progressive shrinking (Once-for-All, arXiv 1908.09791; DynaBERT, 2004.04037)."""

    samplers: Sequence[Sampler]
    starts: Sequence[int]
    """The first optimizer step of each; the first is 0."""

    def __post_init__(self) -> None:
        if len(self.samplers) != len(self.starts) or not self.starts or self.starts[0] or self._unsorted():
            raise SpaceError(f"stages start at step 0 and then later and later, not at {list(self.starts)}.")

    def _unsorted(self) -> bool:
        return any(a >= b for a, b in zip(self.starts, self.starts[1:], strict=False))

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the subnets of the stage that this step belongs to."""
        return self.samplers[bisect.bisect_right(self.starts, step) - 1](step, micro_step)


def _size(subnet: Subnet) -> tuple[int, ...]:
    whole = 1 << 62
    return sum(subnet.ffn), sum(subnet.heads), subnet.hidden or whole, subnet.embedding_dim or whole


def _require(subnets: Sequence[Subnet]) -> None:
    if not subnets:
        raise SpaceError("a sampler needs at least one subnet.")


def _check_weights(weights: Sequence[float] | None, count: int) -> None:
    if weights is not None and (len(weights) != count or min(weights) < 0 or not sum(weights)):
        raise SpaceError(f"{count} weights are needed, none negative and not all 0, not {list(weights)}.")
