"""Extraction from weight files to weight files: memory bounded by a layer, whatever the model's size."""

from elastic.streaming.extract import stream_extraction

__all__ = ["stream_extraction"]
