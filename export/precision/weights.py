"""Weights alone as integers: linear layers in int4, embedding tables in int8."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from .linears import Linear
from .static import quantize_weight

COMPUTE_IN_INT8 = 4
"""The accuracy level at which MatMulNBits quantizes its activations to int8 as well, as its fastest kernels do."""


def to_int4(model: onnx.ModelProto, linears: Sequence[Linear], block_size: int) -> onnx.ModelProto:
    """Return the graph with linear layers as ``com.microsoft.MatMulNBits``, which ONNX Runtime alone knows.

    A scale for every ``block_size`` weights of an output; symmetric, round to nearest.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if not linears:
        return model
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=block_size,
        is_symmetric=True,
        accuracy_level=COMPUTE_IN_INT8,
        nodes_to_include=[linear.name for linear in linears],
    )
    quantizer.process()
    return quantizer.model.model


def quantize_embeddings(model: onnx.ModelProto) -> None:
    """Store embedding tables as int8 with a scale for each row, in place; a row is multiplied when it is looked up."""
    graph = model.graph
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if node.op_type != "Gather" or node.input[0] not in tables or axis != 0:
            nodes.append(node)
            continue
        name, ids, output = node.input[0], node.input[1], node.output[0]
        integers, scales = f"{name}.rows", f"{name}.row_scales"
        if name not in done:
            arrays = quantize_weight(numpy_helper.to_array(tables[name]), axis=1)
            graph.initializer.extend(
                numpy_helper.from_array(array, part) for array, part in zip(arrays, (integers, scales), strict=True)
            )
            done.add(name)
        row, row_float, scale = f"{output}.row", f"{output}.row_float", f"{output}.row_scale"
        nodes += [
            helper.make_node("Gather", [integers, ids], [row], name=row, axis=0),
            helper.make_node("Gather", [scales, ids], [scale], name=scale, axis=0),
            helper.make_node("Cast", [row], [row_float], name=row_float, to=TensorProto.FLOAT),
            helper.make_node("Mul", [row_float, scale], [output], name=node.name),
        ]
    used = {name for node in nodes for name in node.input}
    for name in done - used:
        graph.initializer.remove(tables[name])
    del graph.node[:]
    graph.node.extend(nodes)
