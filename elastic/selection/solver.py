"""Exact choice under several budgets: one option of every group, the best sum of scores, proven optimal."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from elastic.errors import BudgetError

RELATIVE_GAP = 1e-4


_OUTPUT_LOCK = threading.Lock()


@contextmanager
def _quiet_standard_output() -> Iterator[None]:
    """Discard what HiGHS prints: some versions leave a line of debugging output there, in the middle of our JSON."""
    with _OUTPUT_LOCK:
        sys.stdout.flush()
        kept = os.dup(1)
        try:
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a device, not a path of ours)
                os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@dataclass(frozen=True)
class Option:
    """One choice of a group: what it is worth, and what it costs of each budget."""

    score: float
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Solution:
    """The best choice, and how well that is proven."""

    chosen: tuple[int, ...]
    """The index of the chosen option of each group."""
    score: float
    bound: float
    """No choice within the budgets has a larger sum of scores than this."""


def solve(
    groups: Sequence[Sequence[Option]],
    limits: Sequence[float],
    *,
    excluded: Sequence[Sequence[int]] = (),
    time_limit: float = 60.0,
) -> Solution:
    """Choose one option of every group so that all costs stay within their limits and the scores add up to most.

    A multiple-choice, multi-constraint knapsack, solved as a mixed-integer program by HiGHS to a relative gap
    of `RELATIVE_GAP`.

    Args:
        groups: the options of each group; every option has one cost for each limit.
        limits: one for each cost.
        excluded: choices that must not come out, to ask for the next best.
        time_limit: seconds after which the best that was found is returned with its bound.

    Raises:
        BudgetError: if no choice meets all limits.
    """
    scores = np.array([option.score for group in groups for option in group])
    costs = np.array([option.costs for group in groups for option in group], dtype=float).reshape(len(scores), -1)
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    columns = np.arange(len(scores))
    one_of_each = csr_array((np.ones(len(scores)), (group_of, columns)), shape=(len(groups), len(scores)))
    constraints = [LinearConstraint(one_of_each, 1, 1)]
    if len(limits):
        # FLOPs of 1e12 beside parameters of 1e6 would be badly conditioned.
        scale = np.maximum(np.abs(costs).max(axis=0), 1e-12)
        constraints.append(LinearConstraint((costs / scale).T, -np.inf, np.asarray(limits, dtype=float) / scale))
    starts = np.cumsum([0, *(len(group) for group in groups)])[:-1]
    for choice in excluded:
        cut = csr_array((np.ones(len(groups)), (np.zeros(len(groups), dtype=int), starts + np.asarray(choice))),
                        shape=(1, len(scores)))  # fmt: skip
        constraints.append(LinearConstraint(cut, -np.inf, len(groups) - 1))
    scale_of_scores = max(float(np.abs(scores).max()), 1e-12)
    with _quiet_standard_output():
        result = milp(
            -scores / scale_of_scores,
            integrality=np.ones(len(scores)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": time_limit},
        )
    if result.x is None:
        raise BudgetError("no subnet meets all of the budgets together.")
    chosen = tuple(int(np.argmax(part)) for part in np.split(result.x, starts[1:]))
    total = float(sum(group[index].score for group, index in zip(groups, chosen, strict=True)))
    bound = -float(result.mip_dual_bound) * scale_of_scores
    return Solution(chosen, total, max(bound, total))
