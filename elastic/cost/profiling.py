"""Chooses the subnets whose latencies tell those of all others: what a bundle made for profiling holds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.linalg import qr

from elastic.cost.latency import Knots, Vector, curves, features
from elastic.space import AXES, ResolvedSpace, Subnet

NUM_DRAWN = 256
"""Subnets with mixed widths from which the further ones are chosen."""

LEVERAGE = 0.9
"""How much a measured subnet may count in its own prediction; at 1, the others do not tell it."""

DEPTH = ("layers", "attention", "mlp", "exit")

_RANK = 1e-6


def subnets_to_profile(space: ResolvedSpace) -> dict[str, Subnet]:
    """Return the fewest subnets that tell the latency of all others, and a few more that tell how well, by name.

    For each hidden size the first are uniform: the largest, then always the one that differs most from all before (QR
    factorization with column pivoting; Golub and Van Loan, Matrix Computations, section 5.5), until nothing is
    left by which `elastic.cost.LatencyModel` tells subnets apart. Of widths, the smallest, the largest and one between
    are measured, so that a bend shows. The others, most with a width of their own in every layer, are added until any
    one of all could be left out. Equal spaces give equal subnets.
    """
    few = replace(
        space,
        ffn=_with_middle(space.ffn),
        heads=_with_middle(space.heads),
        layers=_ends(space.layers),
        attention=_ends(space.attention),
        mlp=_ends(space.mlp),
        exit=_ends(space.exit),
        # Costs do not depend on how much of an embedding is kept.
        embedding_dim=space.embedding_dim[-1:],
    )
    found = {}
    for hidden in reversed(space.hidden):
        prefix = [] if hidden == space.hidden[-1] else [f"hidden-{hidden}"]
        for name, subnet in _of_one_hidden_size(replace(few, hidden=(hidden,)), space):
            found[".".join(prefix + [name] * (not prefix or name != "largest"))] = subnet
    return found


def _of_one_hidden_size(space: ResolvedSpace, whole: ResolvedSpace) -> list[tuple[str, Subnet]]:
    uniform = _uniform(space, whole)
    # Curves that bend at every width: what tells these, tells straight ones as well.
    knots = curves(set(space.heads))[-1], curves(set(space.ffn))[-1]
    rows = _features(uniform.values(), *knots)
    scale = np.maximum(rows.max(axis=0), 1e-12)
    basis = _spanning(rows / scale)
    measured, x = [list(uniform.items())[index] for index in basis], rows[basis] / scale
    others = _others(space, uniform.values(), {subnet for _, subnet in measured})
    further = _features(others, *knots) / scale
    while others and (excess := _excess_leverage(x)) > 0:
        left = [_excess_leverage(np.vstack([x, row])) for row in further]
        best = int(np.argmin(left))
        if left[best] > excess - _RANK:
            break
        measured.append((f"more-{len(measured) - len(basis) + 1}", others.pop(best)))
        x, further = np.vstack([x, further[best]]), np.delete(further, best, axis=0)
    return measured


def _others(space: ResolvedSpace, uniform: Iterable[Subnet], measured: set[Subnet]) -> list[Subnet]:
    """Return subnets of mixed widths first, and then uniform ones: models of one layer have no mixed widths."""
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(NUM_DRAWN)]
    mixed = [subnet for subnet in drawn if not subnet.is_uniform]
    return [subnet for subnet in dict.fromkeys([*mixed, *uniform]) if subnet not in measured]


def _uniform(space: ResolvedSpace, whole: ResolvedSpace) -> dict[str, Subnet]:
    """Return the uniform subnets by what is not the largest in them; those with the fewest such choices first.

    Besides those of ``space``, single changes of depth with all choices of the ``whole``: how many attentions and MLPs
    are left is not linear in a choice where another axis limits it as well.
    """
    grid = itertools.product(*(reversed(getattr(space, axis)) for axis in AXES))
    changes = [{a: c for a, c in zip(AXES, point, strict=True) if c != getattr(space, a)[-1]} for point in grid]
    changes += [{axis: choice} for axis in DEPTH for choice in reversed(getattr(whole, axis)[:-1])]
    every = replace(space, **{axis: getattr(whole, axis) for axis in DEPTH})
    names: dict[Subnet, str] = {}
    for changed in sorted(changes, key=len):
        name = ".".join(f"{axis}-{choice}" for axis, choice in changed.items())
        names.setdefault(every.uniform(**changed), name or "largest")
    return {name: subnet for subnet, name in names.items()}


def _features(subnets: Iterable[Subnet], heads: Knots, ffn: Knots) -> Vector:
    rows = [features(subnet, heads, ffn) for subnet in subnets]
    return np.array([row for row in rows if row is not None]).reshape(len(rows), 1 + len(heads) + len(ffn))


def _spanning(rows: Vector) -> list[int]:
    """Return the fewest rows that span all, the longest first."""
    _, r, order = qr(rows.T, mode="economic", pivoting=True)
    lengths = np.abs(np.diag(r))
    return [int(index) for index in order[: int((lengths > _RANK * lengths[0]).sum())]]


def _excess_leverage(rows: Vector) -> float:
    """Return by how much the diagonal of the projection onto the span of the columns exceeds `LEVERAGE`, in all."""
    return float(np.maximum(np.diag(rows @ np.linalg.pinv(rows)) - LEVERAGE, 0.0).sum())


def _ends(choices: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((choices[0], choices[-1])))


def _with_middle(widths: tuple[int, ...]) -> tuple[int, ...]:
    half = (widths[0] + widths[-1]) / 2
    return tuple(sorted({*_ends(widths), min(widths, key=lambda width: (abs(width - half), width))}))
