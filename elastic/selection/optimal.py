"""The best subnets by a predictor within a budget, exactly: one integer program for each way of keeping layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from elastic.cost import CostModel, Limits, spent
from elastic.errors import BudgetError
from elastic.selection.predictor import Predictor, choices_of
from elastic.selection.solver import Option, solve
from elastic.space import ResolvedSpace, Subnet, Widths

Sublayers = frozenset[int]
LayerChoice = tuple[int, int]
"""``(ffn, heads)`` of one layer; 0 skips."""


@dataclass(frozen=True)
class Optimum:
    """A subnet, what is predicted of it, and what no other can exceed."""

    subnet: Subnet
    predicted: float
    bound: float
    """No subnet of the space within the budget is predicted to be better than this."""


def predicted_best(
    space: ResolvedSpace, cost_model: CostModel, limits: Limits, predictor: Predictor, count: int
) -> list[Optimum]:
    """Return the ``count`` subnets within the budget of which most is predicted, best first; fewer if there are fewer.

    Costs other than activation memory add up over layers. That is the largest of any layer, so with a memory
    limit the program is solved once for every level that it can have.
    """
    found: dict[Subnet, Optimum] = {}
    for skeleton, widths in itertools.product(space.skeletons(), space.widths()):
        for program in _programs(space, cost_model, limits, predictor, *skeleton, widths):
            for optimum in program.best(count):
                if limits.met_by(cost_model.cost(optimum.subnet)):
                    found.setdefault(optimum.subnet, optimum)
    ranked = sorted(found.values(), key=lambda optimum: -optimum.predicted)[:count]
    bound = max((optimum.bound for optimum in found.values()), default=0.0)
    return [Optimum(optimum.subnet, optimum.predicted, bound) for optimum in ranked]


@dataclass(frozen=True)
class _Program:
    """What is chosen for each layer, and what all of it may cost."""

    layers: list[list[LayerChoice]]
    groups: list[list[Option]]
    limits: list[float]
    base: float
    widths: Widths

    def best(self, count: int) -> list[Optimum]:
        excluded: list[tuple[int, ...]] = []
        found: list[Optimum] = []
        while len(found) < count:
            try:
                solution = solve(self.groups, self.limits, excluded=excluded)
            except BudgetError:
                break
            chosen = [choices[index] for choices, index in zip(self.layers, solution.chosen, strict=True)]
            subnet = Subnet(tuple(ffn for ffn, _ in chosen), tuple(heads for _, heads in chosen), *self.widths)
            found.append(Optimum(subnet, self.base + solution.score, self.base + solution.bound))
            excluded.append(solution.chosen)
        # The first is the best of this program, so its bound holds for all.
        return [Optimum(o.subnet, o.predicted, found[0].bound) for o in found]


def _programs(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    predictor: Predictor,
    attention: Sublayers,
    mlp: Sublayers,
    widths: Widths,
) -> list[_Program]:
    every = [
        [
            (ffn, heads)
            for ffn in (space.ffn if layer in mlp else (0,))
            for heads in (space.heads if layer in attention else (0,))
        ]
        for layer in range(space.dims.num_layers)
    ]
    if "memory" not in limits.values:
        return [_program(space, cost_model, limits, predictor, every, widths, activation=0)]
    kept = attention | mlp
    peaks = [
        {choice: _peak(cost_model, every, layer, choice, widths) if layer in kept else 0 for choice in choices}
        for layer, choices in enumerate(every)
    ]
    programs = []
    for level in sorted({peak for layer in kept for peak in peaks[layer].values()}):
        allowed = [[c for c in choices if peaks[layer][c] <= level] for layer, choices in enumerate(every)]
        if all(allowed) and level < limits.values["memory"]:
            programs.append(_program(space, cost_model, limits, predictor, allowed, widths, activation=level))
    return programs


def _peak(
    cost_model: CostModel, every: list[list[LayerChoice]], layer: int, choice: LayerChoice, widths: Widths
) -> int:
    """The activation memory of one layer, which depends of the others only on which are kept."""
    chosen = [choices[-1] for choices in every]
    chosen[layer] = choice
    subnet = Subnet(tuple(ffn for ffn, _ in chosen), tuple(heads for _, heads in chosen), *widths)
    return cost_model.layer_peaks(subnet)[layer]


def _program(
    space: ResolvedSpace,
    cost_model: CostModel,
    limits: Limits,
    predictor: Predictor,
    allowed: list[list[LayerChoice]],
    widths: Widths,
    *,
    activation: int,
) -> _Program:
    names = list(limits.values)
    num_layers = space.dims.num_layers
    largest = Subnet((space.dims.ffn,) * num_layers, (space.dims.heads,) * num_layers, *widths)
    of_largest = _additive(cost_model, largest, names)
    groups = []
    for layer, choices in enumerate(allowed):
        options = []
        for ffn, heads in choices:
            changed = _with_layer(largest, layer, ffn, heads)
            # The model cannot run without any layer; of one with a single layer there is no such choice.
            costs = _additive(cost_model, changed, names) if changed.kept_layers else (0,) * len(names)
            score = sum(predictor.effects.get(choice, 0.0) for choice in ((layer, "ffn", ffn), (layer, "heads", heads)))
            options.append(Option(score, tuple(float(a - b) for a, b in zip(costs, of_largest, strict=True))))
        groups.append(options)
    left = [
        float(limits.values[name] - used - (activation if name == "memory" else 0))
        for name, used in zip(names, of_largest, strict=True)
    ]
    of_widths = sum(predictor.effects.get(choice, 0.0) for choice in choices_of(Subnet((), (), *widths)))
    return _Program(allowed, groups, left, predictor.base + of_widths, widths)


def _additive(cost_model: CostModel, subnet: Subnet, names: list[str]) -> tuple[float, ...]:
    """The costs of which those of the layers are parts: weights and cache alone, where memory is asked for."""
    cost = cost_model.cost(subnet)
    memory = cost.weight_bytes + cost.cache_bytes
    return tuple(memory if name == "memory" else spent(cost, name) for name in names)


def _with_layer(subnet: Subnet, layer: int, ffn: int, heads: int) -> Subnet:
    widths, counts = list(subnet.ffn), list(subnet.heads)
    widths[layer], counts[layer] = ffn, heads
    return replace(subnet, ffn=tuple(widths), heads=tuple(counts))
