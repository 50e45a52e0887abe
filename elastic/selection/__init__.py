"""Choosing subnets: candidates, measured quality, Pareto fronts."""

from elastic.selection.measured import Measured, Quality
from elastic.selection.search import SearchResult, default_input_shapes, search

__all__ = ["Measured", "Quality", "SearchResult", "default_input_shapes", "search"]
