"""The Pareto front: the subnets that no other one beats in both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elastic.errors import BudgetError, did_you_mean
from elastic.selection.measured import Measured

COSTS = ("flops", "macs", "params", "memory_bytes")


def check_cost(cost: str) -> None:
    """Check that subnets can be compared by this cost.

    Raises:
        BudgetError: if it is unknown (suggests the right one).
    """
    if cost not in COSTS:
        raise BudgetError(f"unknown cost '{cost}'{did_you_mean(cost, COSTS)}")


def pareto_front(points: Sequence[Measured], cost: str = "flops") -> list[Measured]:
    """Return the points that no other beats, cheapest first.

    A point is beaten by one that costs at most as much, is at least as good, and is better in one
    of the two. Of points that are equal in both, the first is kept. A quality that is not finite (a
    subnet that overflowed) is on no front.

    Raises:
        BudgetError: if ``cost`` is unknown.
    """
    check_cost(cost)

    def order(point: Measured) -> tuple[float, float]:
        value = point.quality.value
        return getattr(point.cost, cost), -value if point.quality.higher_is_better else value

    front: list[Measured] = []
    for point in sorted((p for p in points if math.isfinite(p.quality.value)), key=order):
        if not front or point.quality.better_than(front[-1].quality):
            front.append(point)
    return front
