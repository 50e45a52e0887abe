"""The stations from a recipe or a pretrained model to an extracted checkpoint, as the command line runs them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic.pipeline.choice import Chosen as Chosen
    from elastic.pipeline.choice import choose_subnets as choose_subnets
    from elastic.pipeline.conversion import Conversion as Conversion
    from elastic.pipeline.conversion import ConversionPlan as ConversionPlan
    from elastic.pipeline.conversion import convert as convert
    from elastic.pipeline.conversion import plan_conversion as plan_conversion
    from elastic.pipeline.healing import Healing as Healing
    from elastic.pipeline.healing import heal as heal
    from elastic.pipeline.hub import check_repo_id as check_repo_id
    from elastic.pipeline.hub import push_to_hub as push_to_hub
    from elastic.pipeline.routing import MeasuredRouters as MeasuredRouters
    from elastic.pipeline.routing import frozen_subnet as frozen_subnet
    from elastic.pipeline.routing import measure_routed as measure_routed
    from elastic.pipeline.routing import threshold_of as threshold_of
    from elastic.pipeline.training import train as train
    from elastic.pipeline.universal import Universal as Universal
    from elastic.pipeline.universal import extract_checkpoint as extract_checkpoint
    from elastic.pipeline.universal import is_stock as is_stock

# Loaded on first use, so that commands that train nothing do not wait for the Trainer and all that it imports.
_HOME = {
    "Chosen": "choice",
    "Conversion": "conversion",
    "ConversionPlan": "conversion",
    "Healing": "healing",
    "MeasuredRouters": "routing",
    "Universal": "universal",
    "check_repo_id": "hub",
    "choose_subnets": "choice",
    "convert": "conversion",
    "extract_checkpoint": "universal",
    "frozen_subnet": "routing",
    "heal": "healing",
    "is_stock": "universal",
    "measure_routed": "routing",
    "plan_conversion": "conversion",
    "push_to_hub": "hub",
    "threshold_of": "routing",
    "train": "training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'elastic.pipeline' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
