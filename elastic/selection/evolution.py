"""Evolutionary search on measured quality: the usual way to search a supernet, here as a baseline."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from elastic.cost import CostModel, Limits
from elastic.selection.candidates import Candidate, random_candidates
from elastic.selection.measured import Measured, Quality
from elastic.space import ResolvedSpace, Subnet

PARENTS = 0.25
"""Share of the measured subnets, the best ones, that have children."""
GENERATIONS = 5
MUTATION = 0.1
"""How often a choice of one layer changes."""
MAX_TRIES = 200
"""Children that are thrown away, out of the budget or known, before a generation ends."""


def evolve(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    measure: Callable[[Subnet], Quality],
    rank: Callable[[Measured], tuple[float, int]],
    *,
    num_evaluations: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Measured]:
    """Return the subnets within the budget that an evolution has measured.

    A random population, then generations of which half are crossovers and half mutations of the best quarter
    (Once-for-All, arXiv 1908.09791, section 3.4; AutoFormer, arXiv 2107.00651, section 3.4, without their predictors).

    Args:
        space: of which subnets.
        cost_model: what they cost.
        limits: what they may cost.
        measure: the quality of one.
        rank: sort key that puts the best first.
        num_evaluations: how many are measured at most.
        seed: of all draws.
        on_progress: called after each measurement.
    """
    rng = random.Random(seed)
    size = max(1, num_evaluations // GENERATIONS)
    measured: dict[Subnet, Measured] = {}

    def add(candidates: Sequence[Candidate]) -> None:
        for candidate in candidates[: num_evaluations - len(measured)]:
            quality = measure(candidate.subnet)
            measured[candidate.subnet] = Measured(candidate.subnet, candidate.cost, quality, candidate.kind)
            if on_progress:
                on_progress(len(measured), num_evaluations)

    add(random_candidates(space, cost_model, limits, size, seed))
    while measured and len(measured) < num_evaluations:
        parents = sorted(measured.values(), key=rank)[: max(2, round(PARENTS * len(measured)))]
        children = _children(space, cost_model, limits, [p.subnet for p in parents], set(measured), size, rng)
        if not children:
            break
        add(children)
    return list(measured.values())


def _children(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    parents: Sequence[Subnet],
    known: set[Subnet],
    count: int,
    rng: random.Random,
) -> list[Candidate]:
    found: dict[Subnet, Candidate] = {}
    for attempt in range(MAX_TRIES + count):
        if len(found) == count:
            break
        one, other = rng.choice(parents), rng.choice(parents)
        child = _crossed(one, other, rng) if attempt % 2 else _mutated(one, space, rng)
        if child in known or child in found or child not in space:
            continue
        cost = cost_model.cost(child)
        if limits.met_by(cost):
            found[child] = Candidate(child, cost, "uniform" if child.is_uniform else "mix")
    return list(found.values())


def _crossed(one: Subnet, other: Subnet, rng: random.Random) -> Subnet:
    """Every layer from one of two parents, and the model's widths from one of them."""
    takes = [rng.random() < 0.5 for _ in range(one.num_layers)]
    widths = rng.choice((one, other))
    return Subnet(
        tuple(a if take else b for take, a, b in zip(takes, one.ffn, other.ffn, strict=True)),
        tuple(a if take else b for take, a, b in zip(takes, one.heads, other.heads, strict=True)),
        widths.hidden,
        widths.embedding_dim,
    )


def _mutated(parent: Subnet, space: ResolvedSpace, rng: random.Random) -> Subnet:
    """Some choices drawn anew; now and then another set of kept sub-layers, or other widths of the model."""
    drawn = space.sample(rng)
    other_skeleton, other_widths = rng.random() < MUTATION, rng.random() < MUTATION

    def choose(mine: int, new: int) -> int:
        if other_skeleton:
            return new if not new or not mine else mine
        return new if mine and new and rng.random() < MUTATION else mine

    widths = drawn if other_widths else parent
    return Subnet(
        tuple(choose(mine, new) for mine, new in zip(parent.ffn, drawn.ffn, strict=True)),
        tuple(choose(mine, new) for mine, new in zip(parent.heads, drawn.heads, strict=True)),
        widths.hidden,
        widths.embedding_dim,
    )
