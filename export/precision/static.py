"""int8 with scales that calibration fixed: the one form that ONNX Runtime and TensorRT both read.

QuantizeLinear and DequantizeLinear around linear layers: activations in signed int8 with one scale, weights in signed
int8 with a scale for each output, every zero point 0, biases and all other operators in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .linears import Array, Linear

LEVELS = 127
"""Symmetric: -128 is not used."""
ZERO_POINT, UNSIGNED_ZERO_POINT = "zero_point", "zero_point_128"


def to_static(model: onnx.ModelProto, linears: Sequence[Linear], ranges: Mapping[str, float]) -> None:
    """Give linear layers int8 inputs and weights, in place; products of two activations stay as they are.

    Args:
        model: after `prepare_linears`.
        linears: those that become int8.
        ranges: the largest absolute value of each linear layer's input, by the name of the tensor.
    """
    graph = model.graph
    chosen = {linear.name: linear for linear in linears}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    quantized: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    if chosen:
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), ZERO_POINT))
    for node in graph.node:
        linear = chosen.get(node.name) if node.op_type == "MatMul" else None
        if linear is not None:
            for name, make in ((linear.input, _activation), (linear.weight, _weight)):
                if name not in quantized:
                    if make is _activation:
                        nodes.extend(_activation(graph, name, ranges[name]))
                    else:
                        nodes.append(_weight(graph, weights[name]))
                    quantized[name] = f"{name}.dequantized"
            node.input[0], node.input[1] = quantized[linear.input], quantized[linear.weight]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    for linear in linears:
        if linear.weight not in used and linear.weight in weights:
            graph.initializer.remove(weights.pop(linear.weight))
    del graph.node[:]
    graph.node.extend(nodes)


def to_unsigned(model: onnx.ModelProto) -> None:
    """Shift activations from signed int8 around 0 to unsigned int8 around 128, in place: the same numbers.

    ONNX Runtime multiplies integers on x86 only if activations are unsigned; with signed ones it would dequantize
    the weights at every run.
    """
    graph = model.graph
    shifted = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    if not shifted:
        return
    graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), UNSIGNED_ZERO_POINT))
    for node in graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in shifted):
            node.input[2] = UNSIGNED_ZERO_POINT
    unused = next(tensor for tensor in graph.initializer if tensor.name == ZERO_POINT)
    graph.initializer.remove(unused)


def _activation(graph: onnx.GraphProto, name: str, largest: float) -> list[onnx.NodeProto]:
    scale = numpy_helper.from_array(np.array(max(largest, 1e-8) / LEVELS, np.float32), f"{name}.scale")
    graph.initializer.append(scale)
    integers, floats = f"{name}.quantized", f"{name}.dequantized"
    return [
        helper.make_node("QuantizeLinear", [name, scale.name, ZERO_POINT], [integers], name=integers),
        helper.make_node("DequantizeLinear", [integers, scale.name, ZERO_POINT], [floats], name=floats),
    ]


def _weight(graph: onnx.GraphProto, tensor: TensorProto) -> onnx.NodeProto:
    integers, scales = quantize_weight(numpy_helper.to_array(tensor), axis=0)
    names = [f"{tensor.name}.{part}" for part in ("quantized", "scale", "zero_point")]
    arrays = (integers, scales.ravel(), np.zeros(scales.size, np.int8))
    graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True))
    output = f"{tensor.name}.dequantized"
    return helper.make_node("DequantizeLinear", names, [output], name=output, axis=1)


def quantize_weight(weight: Array, axis: int) -> tuple[Array, Array]:
    """Return int8 values and their scales, symmetric; each slice along ``axis`` has its own scale."""
    scales = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), 1e-8) / LEVELS
    return np.clip(np.rint(weight / scales), -LEVELS, LEVELS).astype(np.int8), scales.astype(np.float32)
