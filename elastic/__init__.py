"""Train one universal Transformer, and cut from it the sub-model that any budget asks for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from elastic.checkpoint import load as load
    from elastic.cost import Budget as Budget
    from elastic.cost import CostModel as CostModel
    from elastic.cost import LatencyTable as LatencyTable
    from elastic.errors import ElasticError as ElasticError
    from elastic.extraction import extract as extract
    from elastic.generation import speculative_generate as speculative_generate
    from elastic.nested import Routing as Routing
    from elastic.nested import active as active
    from elastic.nested import add_routers as add_routers
    from elastic.nested import make_elastic as make_elastic
    from elastic.nested import routed as routed
    from elastic.ordering import freeze_routers as freeze_routers
    from elastic.selection import search as search
    from elastic.space import SearchSpace as SearchSpace
    from elastic.space import Subnet as Subnet
    from elastic.streaming import stream_extraction as stream_extraction
    from elastic.training import ElasticTrainer as ElasticTrainer
    from elastic.training import RoutedTrainer as RoutedTrainer

# Loaded on first use, so that `import elastic` and `elastic --help` do not wait for torch.
_HOME = {
    "Budget": "elastic.cost",
    "CostModel": "elastic.cost",
    "ElasticError": "elastic.errors",
    "LatencyTable": "elastic.cost",
    "ElasticTrainer": "elastic.training",
    "RoutedTrainer": "elastic.training",
    "Routing": "elastic.nested",
    "SearchSpace": "elastic.space",
    "Subnet": "elastic.space",
    "active": "elastic.nested",
    "add_routers": "elastic.nested",
    "extract": "elastic.extraction",
    "freeze_routers": "elastic.ordering",
    "load": "elastic.checkpoint",
    "make_elastic": "elastic.nested",
    "routed": "elastic.nested",
    "search": "elastic.selection",
    "speculative_generate": "elastic.generation",
    "stream_extraction": "elastic.streaming",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'elastic' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
