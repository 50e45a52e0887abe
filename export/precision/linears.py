"""The linear layers of a graph: one MatMul with a constant weight each, named after the layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from elastic.errors import CheckpointError, did_you_mean

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Linear:
    """One linear layer."""

    name: str
    """Of the layer in the model, and of its MatMul node."""
    input: str
    """The tensor that it multiplies."""
    weight: str
    shape: tuple[int, int]
    """Inputs and outputs."""


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def prepare_linears(model: onnx.ModelProto) -> tuple[Linear, ...]:
    """Turn every linear layer into a MatMul node that bears the layer's name, and an Add of the bias, in place.

    A Gemm would stay in floating point: neither ONNX Runtime nor TensorRT multiplies integers in it unless its bias is
    an integer too. ONNX Runtime would make one again of a product and a sum of matrices, so rows are left as the text
    or image that they were.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    graph = model.graph
    _leave_rows(graph)
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    linears: list[Linear] = []
    names: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not _is_linear(node, weights):
            nodes.append(node)
            continue
        weight = weights[node.input[1]]
        name = _unique(weight.name.removesuffix(".T").removesuffix(".weight"), names)
        product, bias = _split(node, name)
        if attributes_of(node).get("transB"):
            weight = _transposed(graph, weight, keep=uses[weight.name] > 1)
            product.input[1] = weight.name
        nodes.extend([product] if bias is None else [product, bias])
        linears.append(Linear(name, product.input[0], weight.name, (weight.dims[0], weight.dims[1])))
    del graph.node[:]
    graph.node.extend(nodes)
    ONNXModel(model).topological_sort()
    return tuple(linears)


def select(linears: Sequence[Linear], exclude: Iterable[str]) -> tuple[Linear, ...]:
    """Return the linears that no pattern (``*`` and ``?`` as in file names) excludes.

    Raises:
        CheckpointError: if a pattern matches no linear.
    """
    kept = list(linears)
    for pattern in exclude:
        if not any(fnmatch.fnmatchcase(linear.name, pattern) for linear in linears):
            raise CheckpointError(
                f"no linear layer of the graph is called '{pattern}'{did_you_mean(pattern, [x.name for x in linears])}"
            )
        kept = [linear for linear in kept if not fnmatch.fnmatchcase(linear.name, pattern)]
    return tuple(kept)


def _leave_rows(graph: onnx.GraphProto) -> None:
    """Let every Gemm between a flattening to rows and its undoing work on the shape that is outside of these, in place.

    The result is no valid graph before `prepare_linears` has put products in the place of these Gemms.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 1}
    producers = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    shaped: dict[tuple[str, ...], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        sizes = _sizes_around(node, arrays, producers, consumers)
        if sizes is not None:
            flattened, unflattened = producers[node.input[0]], consumers[node.output[0]][0]
            width = str(arrays[flattened.input[1]][1])
            key = (flattened.input[0], *sizes, width)
            if key not in shaped:
                shaped[key] = f"{node.input[0]}.{len(shaped)}"
                if f"width_{width}" not in arrays:
                    arrays[f"width_{width}"] = np.array([int(width)], np.int64)
                    graph.initializer.append(numpy_helper.from_array(arrays[f"width_{width}"], f"width_{width}"))
                shape = f"{shaped[key]}.shape"
                nodes += [
                    helper.make_node("Concat", [*sizes, f"width_{width}"], [shape], name=shape, axis=0),
                    helper.make_node("Reshape", [flattened.input[0], shape], [shaped[key]], name=shaped[key]),
                ]
            node.input[0], node.output[0] = shaped[key], unflattened.output[0]
            unflattened.output[0] = ""
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "Reshape" or node.output[0] in used - {""}]
    del graph.node[:]
    graph.node.extend(kept)


def _sizes_around(
    node: onnx.NodeProto,
    arrays: dict[str, Array],
    producers: dict[str, onnx.NodeProto],
    consumers: dict[str, list[onnx.NodeProto]],
) -> list[str] | None:
    """Return what the leading sizes are read from if a node works on rows that come from, and go back to, a text."""
    before = producers.get(node.input[0]) if node.op_type == "Gemm" else None
    after = consumers.get(node.output[0], [])
    if before is None or before.op_type != "Reshape" or len(after) != 1 or after[0].op_type != "Reshape":
        return None
    rows, sizes = arrays.get(before.input[1]), producers.get(after[0].input[1])
    if rows is None or rows.shape != (2,) or rows[0] != -1 or sizes is None or sizes.op_type != "Concat":
        return None
    return list(sizes.input[:-1]) if arrays.get(sizes.input[-1], np.zeros(0)).shape == (1,) else None


def _is_linear(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    if node.op_type == "MatMul":
        return node.input[1] in weights
    if node.op_type != "Gemm" or node.input[1] not in weights:
        return False
    values = attributes_of(node)
    return not values.get("transA") and values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0


def _split(node: onnx.NodeProto, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto | None]:
    """Return the product and, if there is a bias, its sum with that."""
    has_bias = len(node.input) > 2 and bool(node.input[2])
    output = f"{name}.product" if has_bias else node.output[0]
    product = helper.make_node("MatMul", list(node.input[:2]), [output], name=name)
    if not has_bias:
        return product, None
    return product, helper.make_node("Add", [output, node.input[2]], [node.output[0]], name=f"{name}.bias")


def _transposed(graph: onnx.GraphProto, weight: TensorProto, *, keep: bool) -> TensorProto:
    tensor = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), f"{weight.name}.T")
    if not keep:
        graph.initializer.remove(weight)
    graph.initializer.append(tensor)
    return graph.initializer[-1]


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, with a number where several layers share one weight."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    taken.add(unique)
    return unique
