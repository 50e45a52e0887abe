"""int8 with scales that are computed at run time, for CPUs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from elastic.export.graph import save_model

from .linears import Linear


def to_dynamic(model: onnx.ModelProto, linears: Sequence[Linear]) -> onnx.ModelProto:
    """Return the graph with linear layers in int8: weights with a scale for each output, activations as they come.

    One scale for a whole weight would cost several times the error (docs/quantization.md). Large weights leave
    ``model``.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not linears:
        return model
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        source, path = (Path(folder) / name for name in ("float.onnx", "int8.onnx"))
        # From a file: of a model in memory, the tool would keep two more copies.
        save_model(model, source)
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[linear.name for linear in linears],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(f"{source.name}.data").exists(),
        )
        return onnx.load(path)


@contextmanager
def _without_advice() -> Iterator[None]:
    """ONNX Runtime advises a preparation that does not take graphs of today's tracer."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
