"""Checkpoints whose layers differ, loadable without Elastic: one file of code goes along with them."""

from elastic.portable.modeling_elastic import (
    ConfigView,
    SkippedModule,
    config_class,
    model_class,
    narrow_stream,
    skipped_output,
)
from elastic.portable.table import CODE_NAME, auto_class_of, layer_sizes, make_portable, size_table

__all__ = [
    "CODE_NAME",
    "auto_class_of",
    "ConfigView",
    "SkippedModule",
    "config_class",
    "layer_sizes",
    "make_portable",
    "model_class",
    "narrow_stream",
    "size_table",
    "skipped_output",
]
