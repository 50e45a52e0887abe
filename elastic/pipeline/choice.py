"""Several subnets of one universal model: those that are named, and the best within each of several budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elastic.cost import Budget, Cost
from elastic.pipeline.universal import Universal
from elastic.selection import Quality, search
from elastic.space import Subnet


@dataclass(frozen=True)
class Chosen:
    """A subnet with its name and cost, and its quality where there is data to measure it on."""

    name: str
    subnet: Subnet
    cost: Cost
    quality: Quality | None


def choose_subnets(
    universal: Universal,
    named: Mapping[str, Subnet],
    budgets: Mapping[str, Budget],
    *,
    num_candidates: int = 48,
    measured: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Chosen]:
    """Return named subnets, and the best within each budget; without either, the granularities; largest first.

    Args:
        universal: what they are subnets of.
        named: subnets by name.
        budgets: budgets by the name of what is found within them.
        num_candidates: how many subnets a search measures at most.
        measured: whether quality is measured, if the model names data; searches measure in any case.
        on_progress: called after each measurement of a search.

    Raises:
        BudgetError: if no subnet meets a budget.
        CheckpointError: if there is a budget, and the model names no data.
    """
    subnets = dict(named) if named or budgets else dict(universal.granularities)
    for name, budget in budgets.items():
        found = search(
            universal.model,
            budget,
            universal.measure,
            cost_model=universal.cost_model,
            num_candidates=num_candidates,
            on_progress=on_progress,
        )
        subnets[name] = found.best.subnet
    measured = measured and universal.record.recipe is not None
    chosen = [
        Chosen(name, subnet, universal.cost_model.cost(subnet), universal.measure(subnet) if measured else None)
        for name, subnet in subnets.items()
    ]
    return sorted(chosen, key=lambda one: -one.cost.flops)
