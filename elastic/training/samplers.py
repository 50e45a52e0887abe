"""Samplers: which subnets a training step runs. Stateless, so ranks agree and a resumed run continues."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from elastic.errors import SpaceError
from elastic.space import ResolvedSpace, Subnet


class Sampler(Protocol):
    """Chooses the subnets of a step; the same for the same arguments, in every process."""

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the subnets of one forward-backward pass.

        Args:
            step: optimizer steps done so far.
            micro_step: which of the batches that are accumulated into this step, from 0.
        """
        ...


def generator(seed: int, step: int) -> random.Random:
    """Return a random generator that depends on its arguments alone."""
    return random.Random(f"elastic-{seed}-{step}")


@dataclass(frozen=True)
class Uniform:
    """One subnet a step, drawn uniformly: MatFormer as published (arXiv 2310.07707, section 3.2)."""

    subnets: Sequence[Subnet]
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.subnets)

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return one subnet, the same for all micro-steps of a step."""
        return [generator(self.seed, step).choice(self.subnets)]


@dataclass(frozen=True)
class Joint:
    """All subnets every step, their losses averaged.

    MatFormer's released code adds the losses up instead; the mean keeps the learning rate and the
    clipping threshold meaning what they mean for one model.
    """

    subnets: Sequence[Subnet]

    def __post_init__(self) -> None:
        _require(self.subnets)

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return all subnets, the first (the teacher, if there is one) the largest."""
        return sorted(self.subnets, key=lambda s: (sum(s.ffn), sum(s.heads)), reverse=True)


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and ``num_random`` random subnets (US-Nets, arXiv 1903.05134, section 3.2)."""

    space: ResolvedSpace
    num_random: int = 2
    seed: int = 0
    _ends: tuple[Subnet, Subnet] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", (self.space.largest, self.space.smallest))

    def __call__(self, step: int, micro_step: int) -> Sequence[Subnet]:
        """Return the largest first (it is the teacher), then the random ones, then the smallest."""
        rng = generator(self.seed, step)
        largest, smallest = self._ends
        return [largest, *(self.space.sample(rng) for _ in range(self.num_random)), smallest]


def _require(subnets: Sequence[Subnet]) -> None:
    if not subnets:
        raise SpaceError("a sampler needs at least one subnet.")
