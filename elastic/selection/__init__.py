"""Choosing subnets: candidates, measured quality, Pareto fronts."""

from elastic.selection.cache import MeasuredCache
from elastic.selection.measured import Measured, Quality
from elastic.selection.search import METHODS, SearchResult, default_input_shapes, search

__all__ = ["METHODS", "MeasuredCache", "Measured", "Quality", "SearchResult", "default_input_shapes", "search"]
