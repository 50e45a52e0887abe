"""What subnets cost: FLOPs, parameters and memory, without running them; and budgets."""

from elastic.cost.budget import Budget, Limits, format_quantity, parse_quantity
from elastic.cost.cost import Cost, InputShapes
from elastic.cost.model import CostModel, peak_activation_bytes
from elastic.cost.phases import PHASES, DecoderCostModel, Phase

__all__ = [
    "Budget",
    "Cost",
    "CostModel",
    "DecoderCostModel",
    "InputShapes",
    "Limits",
    "PHASES",
    "Phase",
    "format_quantity",
    "parse_quantity",
    "peak_activation_bytes",
]
