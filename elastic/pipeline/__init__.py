"""The stations from a recipe or a pretrained model to an extracted checkpoint, as the command line runs them."""

from elastic.pipeline.choice import Chosen, choose_subnets
from elastic.pipeline.conversion import Conversion, ConversionPlan, convert, plan_conversion
from elastic.pipeline.healing import Healing, heal
from elastic.pipeline.hub import check_repo_id, push_to_hub
from elastic.pipeline.routing import MeasuredRouters, frozen_subnet, measure_routed, threshold_of
from elastic.pipeline.training import train
from elastic.pipeline.universal import Universal, extract_checkpoint, is_stock

__all__ = [
    "Chosen",
    "Conversion",
    "ConversionPlan",
    "Universal",
    "Healing",
    "check_repo_id",
    "choose_subnets",
    "MeasuredRouters",
    "convert",
    "extract_checkpoint",
    "frozen_subnet",
    "heal",
    "is_stock",
    "measure_routed",
    "plan_conversion",
    "push_to_hub",
    "threshold_of",
    "train",
]
