"""Extraction from weight files to weight files: memory bounded by a layer, whatever the model's size."""

from elastic.streaming.extract import stream_extraction
from elastic.streaming.work import SUFFIX

__all__ = ["SUFFIX", "stream_extraction"]
