"""What the subnets of a configuration would cost: computed before there are any weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from elastic.cost.budget import Budget
from elastic.cost.cost import Cost, InputShapes
from elastic.cost.model import CostModel
from elastic.errors import BudgetError, FamilyError
from elastic.families import get_family
from elastic.space import ResolvedSpace, SearchSpace, Subnet

MAX_SUBNETS = 512
"""How many uniform subnets are looked at; of more, evenly many from the whole grid."""

WEIGHT_BITS = {"float32": 32, "bfloat16": 16, "int8": 8}
"""Types in which a plan states the size of the weights, with their bits."""


@dataclass(frozen=True)
class Plan:
    """The uniform subnets of a space with their costs, from the cheapest to the full model."""

    space: ResolvedSpace
    subnets: tuple[tuple[Subnet, Cost], ...]
    num_uniform: int
    """How many uniform subnets the space has; more than are listed where it has very many, or a budget is given."""


def make_plan(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    space: SearchSpace,
    input_shapes: InputShapes,
    budget: Budget | None = None,
) -> Plan:
    """Return what a space's uniform subnets cost, within a budget if there is one.

    Raises:
        FamilyError: if the architecture is not supported.
        SpaceError: if the space does not fit the model.
        BudgetError: if no uniform subnet is within the budget.
    """
    resolved = space.resolve(get_family(config).dims(config))
    cost_model = CostModel(model_class, config, input_shapes)
    largest = cost_model.cost(resolved.largest)
    limits = budget.limits(largest) if budget else None
    uniform = resolved.uniform_subnets()
    step = -(-len(uniform) // MAX_SUBNETS)
    looked_at = dict.fromkeys([resolved.smallest, *itertools.islice(uniform, 0, None, step), resolved.largest])
    costs = {subnet: cost_model.cost(subnet) for subnet in looked_at}
    if limits:
        cheapest = min(costs.values(), key=lambda cost: cost.flops)
        costs = {subnet: cost for subnet, cost in costs.items() if limits.met_by(cost)}
        if not costs:
            limits.check_reachable(cheapest)
            raise BudgetError(f"no uniform subnet is within {limits}; loosen one of them.")
    listed = sorted(costs.items(), key=lambda item: (item[1].flops, item[1].params))
    return Plan(resolved, tuple(listed), len(uniform))


def weight_bytes(cost: Cost) -> dict[str, int]:
    """Return the bytes of the weights in each type of `WEIGHT_BITS`, without the scales of quantization."""
    return {name: cost.params * bits // 8 for name, bits in WEIGHT_BITS.items()}


def class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the model class that a configuration names, or the one that transformers would take without a name.

    Raises:
        FamilyError: if transformers has no such class.
    """
    import transformers

    names = config.architectures or []
    if names and isinstance(getattr(transformers, names[0], None), type):
        return getattr(transformers, names[0])  # type: ignore[no-any-return]
    auto: Any = AutoModelForCausalLM if get_family(config).generates else AutoModel
    if names or type(config) not in auto._model_mapping:
        raise FamilyError(f"transformers has no class '{', '.join(names) or config.model_type}'.")
    return auto._model_mapping[type(config)]  # type: ignore[no-any-return]
