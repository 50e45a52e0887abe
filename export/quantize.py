"""Quantizes a graph to int8 with scales that are computed at run time, and says what that costs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from elastic.errors import CheckError

from .runtime.compare import unmasked
from .runtime.manifest import TensorSpec

Array = np.ndarray[Any, Any]

MIN_COSINE = 0.97
"""Of the outputs to those in float32, on average over all rows; below, an int8 graph is refused."""


@dataclass(frozen=True)
class Similarity:
    """How alike the outputs of two graphs are: cosines of their rows."""

    mean: float
    min: float


def quantize_dynamic(path: Path) -> None:
    """Replace a graph by its int8 form: weights per output channel, activations as they come, embeddings as well.

    One scale for a whole weight would cost several times the error (docs/onnx.md).

    Raises:
        CheckError: if the weights lie beside the graph, which ONNX Runtime's quantizer would duplicate.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    model = onnx.load(path, load_external_data=False)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise CheckError("graphs of more than 1.5 GB of weights cannot be quantized here; cut a smaller subnet.")
    ir_version = model.ir_version
    whole = path.with_suffix(".int8")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # It advises a preparation that does not take graphs of today's tracer.
    try:
        quantize(path, whole, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    model = onnx.load(whole)
    whole.unlink()
    model.ir_version = ir_version
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain and opset.domain not in used]:
        model.opset_import.remove(opset)
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def row_cosines(spec: TensorSpec, expected: Array, actual: Array, mask: Array | None) -> Array:
    """Return the cosine of every row (along the last axis) that the mask leaves in."""
    if mask is not None:
        expected, actual = unmasked(spec, expected, mask), unmasked(spec, actual, mask)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
    return ((expected * actual).sum(-1) / np.maximum(norms, 1e-12)).ravel()
