"""Rewrites a traced graph into one that computes the same with fewer and cheaper nodes.

What the rules are worth was measured on ONNX Runtime's CPU kernels (docs/onnx.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass


def rewrite(model: ir.Model) -> None:
    """Apply all rules in place; the graph must still have the shapes that the tracer noted."""
    graph = model.graph
    for rule in (_divide, _rotate_without_negation, _use_constant_shapes, _join_bias):
        for node in list(graph):
            rule(graph, node)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)


def _divide(graph: ir.Graph, node: ir.Node) -> None:
    """``x * Reciprocal(Sqrt(y))`` is ``x / Sqrt(y)``, which ONNX Runtime knows as the end of an RMS norm."""
    if node.op_type != "Mul":
        return
    for index, value in enumerate(node.inputs):
        reciprocal = value.producer() if value is not None else None
        if reciprocal is not None and reciprocal.op_type == "Reciprocal" and _is_op(reciprocal.inputs[0], "Sqrt"):
            _replace(graph, node, "Div", [node.inputs[1 - index], reciprocal.inputs[0]])
            return


def _rotate_without_negation(graph: ir.Graph, node: ir.Node) -> None:
    """``[-b, a] * sin`` of rotary positions is ``[b, a] * [-sin, sin]``, and the second is the same in all layers."""
    if node.op_type != "Mul":
        return
    for index, value in enumerate(node.inputs):
        concat = value.producer() if value is not None else None
        if value is None or concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
            continue
        if len(value.uses()) != 1:
            continue
        negation = concat.inputs[0].producer() if concat.inputs[0] is not None else None
        sine = node.inputs[1 - index]
        halves = [part.shape[-1] if part is not None and part.shape is not None else None for part in concat.inputs]
        if negation is None or negation.op_type != "Neg" or sine is None or not all(type(h) is int for h in halves):
            continue
        if sine.shape is None or sine.shape[-1] != sum(halves):  # type: ignore[arg-type]
            continue
        if concat.attributes["axis"].as_int() not in (-1, len(value.shape) - 1 if value.shape is not None else -1):
            continue
        first, second = halves
        signs = np.concatenate([-np.ones(first, np.float32), np.ones(second, np.float32)])  # type: ignore[arg-type]
        signed = ir.node("Mul", [sine, add_constant(graph, f"signs_{halves[0]}_{halves[1]}", signs)])
        signed.outputs[0].type, signed.outputs[0].shape = sine.type, sine.shape
        concat.replace_input_with(0, negation.inputs[0])
        producer = sine.producer()
        if producer is None:
            graph.insert_before(node, signed)
        else:
            graph.insert_after(producer, signed)
        node.replace_input_with(1 - index, signed.outputs[0])
        return


def _use_constant_shapes(graph: ir.Graph, node: ir.Node) -> None:
    """A shape in which 0 stands for the size of the input and -1 for one more needs no nodes that compute it."""
    if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
        return
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return
    same = [_is_known(old) and str(old) == str(new) for old, new in zip(before.shape, after.shape, strict=False)]
    same += [False] * (len(after.shape) - len(same))
    target = [new if isinstance(new, int) else 0 if kept else -1 for new, kept in zip(after.shape, same, strict=True)]
    if target.count(-1) > 1 or any(size == 0 for size in after.shape):
        return
    shape = add_constant(graph, "shape_" + "_".join(map(str, target)), np.array(target, np.int64))
    _replace(graph, node, "Reshape", [before, shape])


def _join_bias(graph: ir.Graph, node: ir.Node) -> None:
    """``x @ W + b`` is one Gemm over all rows, which saves a pass over the product."""
    if node.op_type != "Add":
        return
    for index, value in enumerate(node.inputs):
        product = value.producer() if value is not None else None
        bias = node.inputs[1 - index]
        if value is None or product is None or product.op_type != "MatMul" or not _is_weight(bias, 1):
            continue
        x, weight = product.inputs
        if (
            len(value.uses()) != 1
            or not _is_weight(weight, 2)
            or x is None
            or x.shape is None
            or len(x.shape) not in (2, 3)
        ):
            continue
        width, columns = weight.const_value.numpy().shape  # type: ignore[union-attr]
        if bias.const_value.shape[0] != columns or not all(map(_is_known, x.shape)):  # type: ignore[union-attr]
            continue
        if len(x.shape) == 2:
            _replace(graph, node, "Gemm", [x, weight, bias])
            return
        rows = ir.node("Reshape", [x, add_constant(graph, f"shape_-1_{width}", np.array([-1, width], np.int64))])
        gemm = ir.node("Gemm", [rows.outputs[0], weight, bias])
        graph.insert_before(node, [rows, gemm])
        _replace(graph, node, "Reshape", [gemm.outputs[0], shape_of_rows(graph, node, x, columns)])
        return


def shape_of_rows(graph: ir.Graph, node: ir.Node, x: ir.Value, width: int) -> ir.Value:
    """Return ``(*x.shape[:2], width)``, computed once for all that have it, before the first ``node`` that needs it."""
    assert x.shape is not None
    key = f"shape_{x.shape[0]}_{x.shape[1]}_{width}"
    if key not in graph.meta:
        leading = ir.node("Shape", [x], attributes={"start": 0, "end": 2})
        columns = add_constant(graph, f"shape_{width}", np.array([width], np.int64))
        whole = ir.node("Concat", [leading.outputs[0], columns], attributes={"axis": 0})
        graph.insert_before(node, [leading, whole])
        graph.meta[key] = whole.outputs[0]
    return graph.meta[key]


def _is_op(value: ir.Value | None, op_type: str) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == op_type


def _is_known(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, int) or size.value is not None


def _is_weight(value: ir.Value | None, rank: int) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == rank


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the constant of this name, which is added if the graph does not have it."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind: Any = ir.TensorType(tensor.dtype)
        shape: Any = ir.Shape(array.shape)
        graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None]) -> None:
    """Put a node of another type in the place of one, with the same output."""
    new, old = ir.node(op_type, inputs), node.outputs[0]
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
