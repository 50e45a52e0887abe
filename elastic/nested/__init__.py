"""Nested layers and the active subnet: how one set of weights runs as many models."""

from elastic.nested.active import Elastic, active, get_elastic
from elastic.nested.layers import SkippedModule
from elastic.nested.surgery import make_elastic, meta_model, set_drop_order

__all__ = ["Elastic", "SkippedModule", "active", "get_elastic", "make_elastic", "meta_model", "set_drop_order"]
