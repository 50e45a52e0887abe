"""The Pareto front: the subnets that no other one beats in both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elastic.cost import Cost
from elastic.errors import BudgetError, did_you_mean
from elastic.selection.measured import Measured

COSTS = {
    "flops": "flops",
    "macs": "macs",
    "params": "params",
    "memory_bytes": "memory",
    "latency_ms": "latency",
    "energy_mj": "energy",
}
"""What a front can be over, and the budget that limits it."""


def check_cost(name: str, cost: Cost | None = None) -> None:
    """Check that subnets can be compared by this cost, and that costs such as this one have it.

    Raises:
        BudgetError: if it is unknown (suggests the right one), or there is no latency table that it comes from.
    """
    if name not in COSTS:
        raise BudgetError(f"unknown cost '{name}'{did_you_mean(name, COSTS)}")
    if cost is not None and getattr(cost, name) is None:
        raise BudgetError(
            f"{name} comes from a latency table of a device that could measure it; give one with --table T.json, or "
            "choose another cost."
        )


def pareto_front(points: Sequence[Measured], costs: str | Sequence[str] = "flops") -> list[Measured]:
    """Return the points that no other beats, cheapest first by the first cost.

    A point is beaten by one that costs at most as much by every cost, is at least as good, and is better in one of
    these. Of points that are equal in all, the first is kept. A quality that is not finite (a subnet that overflowed)
    is on no front.

    Args:
        points: measured by one metric.
        costs: one or several of flops, macs, params, memory_bytes, latency_ms, energy_mj.

    Raises:
        BudgetError: if a cost is unknown, or a point has none.
    """
    names = (costs,) if isinstance(costs, str) else tuple(costs)
    for name in names:
        check_cost(name)
        for point in points:
            check_cost(name, point.cost)

    def spent(point: Measured) -> tuple[float, ...]:
        return *(getattr(point.cost, name) for name in names), -point.quality.score

    front: dict[tuple[float, ...], Measured] = {}
    # In this order, whoever beats a point comes before it.
    for point in sorted((p for p in points if math.isfinite(p.quality.value)), key=spent):
        mine = spent(point)
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in front):
            front[mine] = point
    return list(front.values())
