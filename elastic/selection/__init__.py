"""Choosing subnets: candidates, measured quality, Pareto fronts."""

from elastic.selection.cache import MeasuredCache
from elastic.selection.joint import JointResult, Precision, PrecisionResult, joint_search
from elastic.selection.measured import Measured, Quality
from elastic.selection.search import METHODS, SearchResult, default_input_shapes, search

__all__ = [
    "METHODS",
    "JointResult",
    "MeasuredCache",
    "Measured",
    "Precision",
    "PrecisionResult",
    "Quality",
    "SearchResult",
    "default_input_shapes",
    "joint_search",
    "search",
]
