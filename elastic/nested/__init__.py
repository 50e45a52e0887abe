"""Nested layers and the active subnet: how one set of weights runs as many models."""

from elastic.nested.active import Elastic, active, evaluating, get_elastic, is_elastic, resumed_from
from elastic.nested.architecture import complete_first_layer, config_of_layers, meta_model
from elastic.nested.gates import GateGradient, GateKey, Trace, What
from elastic.nested.layers import RowNested, take_units
from elastic.nested.routing import (
    ROUTERS_NAME,
    Routing,
    add_routers,
    default_layers,
    get_routers,
    read_routers,
    routed,
    write_routers,
)
from elastic.nested.stream import Stream
from elastic.nested.surgery import make_elastic, set_drop_order
from elastic.portable import SkippedModule

__all__ = [
    "Elastic",
    "GateGradient",
    "GateKey",
    "ROUTERS_NAME",
    "Routing",
    "Trace",
    "What",
    "add_routers",
    "default_layers",
    "get_routers",
    "read_routers",
    "routed",
    "write_routers",
    "RowNested",
    "SkippedModule",
    "Stream",
    "active",
    "complete_first_layer",
    "config_of_layers",
    "evaluating",
    "get_elastic",
    "is_elastic",
    "make_elastic",
    "meta_model",
    "resumed_from",
    "set_drop_order",
    "take_units",
]
