"""What subnets cost: FLOPs, parameters and memory, computed; latency and energy, from a device's table; budgets."""

from elastic.cost.budget import Budget, Limits, format_quantity, format_spent, parse_quantity, spent
from elastic.cost.cost import Cost, InputShapes
from elastic.cost.latency import LatencyModel
from elastic.cost.latency_table import LatencyTable, check_together
from elastic.cost.model import CostModel, peak_activation_bytes
from elastic.cost.phases import PHASES, DecoderCostModel, Phase
from elastic.cost.profiling import subnets_to_profile

__all__ = [
    "Budget",
    "Cost",
    "CostModel",
    "DecoderCostModel",
    "InputShapes",
    "LatencyModel",
    "LatencyTable",
    "Limits",
    "PHASES",
    "Phase",
    "check_together",
    "format_quantity",
    "format_spent",
    "parse_quantity",
    "peak_activation_bytes",
    "spent",
    "subnets_to_profile",
]
