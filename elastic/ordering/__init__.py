"""Importance: which neurons, heads and layers of a pretrained model its subnets keep."""

from elastic.ordering.correction import CORRECTIONS, Correction, correct
from elastic.ordering.depth import DEPTH_METHODS, DepthMethod, drop_order
from elastic.ordering.hidden import permute_hidden, score_hidden
from elastic.ordering.permutation import order_within, permute
from elastic.ordering.routers import freeze_routers, threshold_for, trace_routers, without
from elastic.ordering.scores import METHODS, Method, score
from elastic.ordering.sites import Axis, Batches, check_finite

__all__ = [
    "CORRECTIONS",
    "DEPTH_METHODS",
    "METHODS",
    "Axis",
    "Batches",
    "Correction",
    "DepthMethod",
    "Method",
    "check_finite",
    "correct",
    "drop_order",
    "freeze_routers",
    "order_within",
    "permute",
    "permute_hidden",
    "score",
    "score_hidden",
    "threshold_for",
    "trace_routers",
    "without",
]
