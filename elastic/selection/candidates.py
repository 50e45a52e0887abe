"""Which subnets a search or a plot looks at: uniform ones, minimum-slope mixes, random ones, neighbours."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from elastic.cost import Cost, CostModel, Limits
from elastic.space import WIDTHS, ResolvedSpace, Subnet

MAX_MIXTURES = 5_000
NUM_RANDOM = 500


@dataclass(frozen=True)
class Candidate:
    """A subnet that a search may measure."""

    subnet: Subnet
    cost: Cost
    kind: str
    name: str = ""


def candidates(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    num_candidates: int,
    *,
    seed: int = 0,
) -> list[Candidate]:
    """Return the subnets that use most of the budget; half of them uniform, as far as there are so many."""
    uniform = _closest(space.uniform_subnets(), cost_model, limits, "uniform")
    seen = {candidate.subnet for candidate in uniform}
    rng = random.Random(seed)
    mixtures = thinned(space.min_slope_mixtures(), MAX_MIXTURES, rng)
    drawn = (space.sample(rng) for _ in range(NUM_RANDOM))
    pool = dict.fromkeys(s for s in itertools.chain(mixtures, drawn) if s not in seen)
    mixes = _closest(pool, cost_model, limits, "mix")
    num_mixes = min(len(mixes), max(num_candidates // 2, num_candidates - len(uniform)))
    return [*uniform[: num_candidates - num_mixes], *mixes[:num_mixes]]


def uniform_candidates(
    space: ResolvedSpace, cost_model: CostModel, limits: Limits, num_candidates: int, accept: Callable[[Subnet], bool]
) -> list[Candidate]:
    """Return the uniform subnets that use most of the budget, of those that are acceptable."""
    accepted = [subnet for subnet in space.uniform_subnets() if accept(subnet)]
    return _closest(accepted, cost_model, limits, "uniform")[:num_candidates]


def every_other_candidates(space: ResolvedSpace, cost_model: CostModel, limits: Limits) -> list[Candidate]:
    """Return the subnets that keep evenly spaced layers whole, whatever the drop order (LayerDrop's rule)."""
    even = replace(space, drop_order=None)
    return _closest([even.uniform(layers=count) for count in space.layers], cost_model, limits, "uniform")


def _closest(subnets: Iterable[Subnet], cost_model: CostModel, limits: Limits, kind: str) -> list[Candidate]:
    found = [Candidate(subnet, cost_model.cost(subnet), kind) for subnet in subnets]
    within = [candidate for candidate in found if limits.met_by(candidate.cost)]
    return sorted(within, key=lambda candidate: -limits.closeness(candidate.cost))


def thinned(subnets: Iterable[Subnet], limit: int, rng: random.Random) -> list[Subnet]:
    """At most ``limit`` of a stream that may be long, each with the same chance."""
    kept: list[Subnet] = []
    for index, subnet in enumerate(itertools.islice(subnets, 20 * limit)):
        if len(kept) < limit:
            kept.append(subnet)
        elif (place := rng.randrange(index + 1)) < limit:
            kept[place] = subnet
    return kept


def random_candidates(
    space: ResolvedSpace, cost_model: CostModel, limits: Limits, num_candidates: int, seed: int
) -> list[Candidate]:
    """Return random subnets within the budget."""
    rng = random.Random(seed)
    found: dict[Subnet, Candidate] = {}
    for _ in range(100 * num_candidates):
        subnet = space.sample(rng)
        cost = cost_model.cost(subnet)
        if limits.met_by(cost):
            found[subnet] = Candidate(subnet, cost, "uniform" if subnet.is_uniform else "mix")
        if len(found) == num_candidates:
            break
    return list(found.values())


def neighbours(space: ResolvedSpace, subnet: Subnet) -> list[Subnet]:
    """Return the subnets that differ by one step of one axis, or by a step up in one layer and one down in another."""
    steps: dict[int, list[Subnet]] = {1: [], -1: []}
    for axis, choices in (("ffn", space.ffn), ("heads", space.heads)):
        for layer, value in enumerate(getattr(subnet, axis)):
            for direction, found in steps.items():
                place = choices.index(value) + direction if value in choices else -1
                if 0 <= place < len(choices):
                    values = list(getattr(subnet, axis))
                    values[layer] = choices[place]
                    found.append(replace(subnet, **{axis: tuple(values)}))  # type: ignore[arg-type]
    swaps = (
        replace(
            subnet,
            ffn=tuple(u + d - s for u, d, s in zip(up.ffn, down.ffn, subnet.ffn, strict=True)),
            heads=tuple(u + d - s for u, d, s in zip(up.heads, down.heads, subnet.heads, strict=True)),
        )
        for up in steps[1]
        for down in steps[-1]
        if all(u == s or d == s for u, d, s in zip(up.ffn + up.heads, down.ffn + down.heads,
                                                   subnet.ffn + subnet.heads, strict=True))
    )  # fmt: skip
    return list(dict.fromkeys([*steps[1], *steps[-1], *swaps, *_other_widths(space, subnet)]))


def _other_widths(space: ResolvedSpace, subnet: Subnet) -> Iterator[Subnet]:
    """Yield the subnets that differ by one step of the hidden size or of the embedding's dimensions."""
    now = {axis: getattr(subnet, axis) or getattr(space, axis)[-1] for axis in WIDTHS}
    for axis, value in now.items():
        choices = getattr(space, axis)
        for place, choice in enumerate(choices):
            if value in choices and abs(place - choices.index(value)) == 1:
                changed = space.uniform(**{**now, axis: choice})
                if (changed.hidden, changed.embedding_dim) != (subnet.hidden, subnet.embedding_dim):
                    yield replace(subnet, hidden=changed.hidden, embedding_dim=changed.embedding_dim)
