"""Lays weights out so that those of a smaller subnet are the beginning of a larger one's.

Projections into an elastic width (FFN up, query, key, value) are stored by rows, one row for each unit, and the graph
multiplies with the transposed matrix; those out of it are stored the other way around. Fused projections become one
projection for each of their blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.families import Family, output_dim
from elastic.space import Subnet

from .rewrite import add_constant, shape_of_rows

Rule = Callable[[ir.Model], None]
RowBlocks = Mapping[bytes, tuple[int, ...]]
"""Digest of a weight as the tracer writes it, ``(in, out)``, to the number of outputs of each of its blocks."""


def row_blocks(family: Family, universal: PreTrainedConfig, model: PreTrainedModel, subnet: Subnet) -> RowBlocks:
    """Return the projections into elastic widths of ``model``, which is ``subnet`` of a universal model.

    With them goes the projection to the vocabulary where it is the embedding, whose rows the graph has already.
    """
    group = family.dims(universal).heads_per_group
    found: dict[bytes, tuple[int, ...]] = {}
    head: Any = model.get_output_embeddings()
    words: Any = model.get_input_embeddings()
    if head is not None and head.weight.data_ptr() == words.weight.data_ptr():
        found[_digest(head.weight.detach().cpu().numpy().T)] = (head.weight.shape[0],)
    for index, layer in zip(subnet.kept_layers, family.find_layers(model)[1], strict=True):
        for blocks_of, units in (
            (family.head_blocks(universal), subnet.heads[index] // group),
            (family.ffn_blocks(universal), subnet.ffn[index]),
        ):
            for path, blocks in blocks_of.items() if units else ():
                linear = layer.get_submodule(path)
                weight = linear.weight.detach().cpu().numpy()  # type: ignore[operator,union-attr]
                found[_digest(weight if output_dim(linear) else weight.T)] = tuple(
                    rows.stop - rows.start for rows in (block.rows(units) for block in blocks)
                )
    return found


def store_by_rows(weights: RowBlocks) -> Rule:
    """Return a rule that rewrites the products with these weights; it needs the shapes that the tracer noted."""

    def rule(model: ir.Model) -> None:
        graph = model.graph
        for node in list(graph):
            if node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node)):
                _rewrite(graph, node, weights)
        RemoveUnusedNodesPass()(model)
        CommonSubexpressionEliminationPass()(model)
        graph.sort()  # A shape that several nodes share was put before the one that asked for it first.

    return rule


def _is_plain(gemm: ir.Node) -> bool:
    """Whether it is ``x @ W + b``, without factors and transposition."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(attribute.value == plain.get(name) for name, attribute in gemm.attributes.items())


def _rewrite(graph: ir.Graph, node: ir.Node, weights: RowBlocks) -> None:
    x, weight = node.inputs[:2]
    if x is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return
    array = weight.const_value.numpy()
    blocks = weights.get(_digest(array))
    if blocks is None:
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm":
        end = _only_reshape(node)
        parts = [_gemm(graph, node, x, part) for part in _parts(graph, weight, bias, blocks)]
        if len(parts) == 1:
            _take_place(graph, node, parts[0])
        elif end is None:
            _join(graph, node, parts, blocks)
        else:
            like = end.inputs[1]
            assert like is not None
            _join(
                graph, end, [_reshape_like(graph, end, p, like, b) for p, b in zip(parts, blocks, strict=True)], blocks
            )
            graph.remove(node, safe=True)
        return
    if x.shape is None or len(x.shape) not in (2, 3) or not all(isinstance(d, int) or d.value for d in x.shape):
        return
    rows = x
    if len(x.shape) == 3:
        shape = add_constant(graph, f"shape_-1_{len(array)}", np.array([-1, len(array)], np.int64))
        rows = _before(graph, node, "Reshape", [x, shape])
    parts = [_gemm(graph, node, rows, part) for part in _parts(graph, weight, None, blocks)]
    if len(x.shape) == 3:
        shapes = [shape_of_rows(graph, node, x, size) for size in blocks]
        parts = [_before(graph, node, "Reshape", [p, s]) for p, s in zip(parts, shapes, strict=True)]
    if len(parts) == 1:
        _take_place(graph, node, parts[0])
    else:
        _join(graph, node, parts, blocks)


def _parts(
    graph: ir.Graph, weight: ir.Value, bias: ir.Value | None, blocks: Sequence[int]
) -> list[tuple[ir.Value, ir.Value | None]]:
    """Return the transposed weight and the bias of each block."""
    assert weight.const_value is not None
    found, start = [], 0
    for number, size in enumerate(blocks):
        columns = slice(start, start + size)
        suffix = f".rows.{number}" if len(blocks) > 1 else ".rows"
        part = np.ascontiguousarray(weight.const_value.numpy()[:, columns].T)
        stored, added = add_constant(graph, f"{weight.name}{suffix}", part), bias
        if bias is not None and len(blocks) > 1:
            assert bias.const_value is not None
            added = add_constant(graph, f"{bias.name}{suffix}", bias.const_value.numpy()[columns].copy())
        found.append((stored, added))
        start += size
    return found


def _gemm(graph: ir.Graph, node: ir.Node, x: ir.Value, part: tuple[ir.Value, ir.Value | None]) -> ir.Value:
    weight, bias = part
    gemm = ir.node("Gemm", [x, weight, *([] if bias is None else [bias])], attributes={"transB": 1})
    graph.insert_before(node, gemm)
    return gemm.outputs[0]


def _join(graph: ir.Graph, node: ir.Node, parts: Sequence[ir.Value], blocks: Sequence[int]) -> None:
    """Give the parts to whoever takes a fused product apart; put them together for whoever does not."""
    ends = np.cumsum(blocks).tolist()
    ranges = {(end - size, end): part for size, end, part in zip(blocks, ends, parts, strict=True)}
    whole = node.outputs[0]
    for user, _ in list(whole.uses()):
        if user.op_type == "Split" and len(user.outputs) == len(parts) and _splits_last(user, blocks):
            for output, block in zip(user.outputs, parts, strict=True):
                ir.convenience.replace_all_uses_with(output, block)
            graph.remove(user, safe=True)
        elif (part := ranges.get(_sliced(user, ends[-1]))) is not None:
            ir.convenience.replace_all_uses_with(user.outputs[0], part)
            graph.remove(user, safe=True)
    if whole.uses() or whole.is_graph_output():
        _take_place(graph, node, _before(graph, node, "Concat", list(parts), axis=-1))
    else:
        graph.remove(node, safe=True)


def _splits_last(node: ir.Node, blocks: Sequence[int]) -> bool:
    source = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if source is None or source.shape is None or axis not in (-1, len(source.shape) - 1):
        return False
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = _ints(node.inputs[1])
        return sizes is not None and sizes == list(blocks)
    return len(set(blocks)) == 1


def _sliced(node: ir.Node, width: int) -> tuple[int, int]:
    """Return the range of the last axis that a Slice takes, or an empty one for other nodes."""
    if node.op_type != "Slice" or len(node.inputs) < 4 or node.inputs[0] is None or node.inputs[0].shape is None:
        return (0, 0)
    start, end, axis = (_ints(value) for value in node.inputs[1:4])
    steps = _ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if not start or not end or not axis or steps != [1] or axis[0] not in (-1, len(node.inputs[0].shape) - 1):
        return (0, 0)
    return (start[0], min(end[0], width))


def _ints(value: ir.Value | None) -> list[int] | None:
    return None if value is None or value.const_value is None else [int(i) for i in value.const_value.numpy().ravel()]


def _only_reshape(node: ir.Node) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return (
        users[0]
        if len(users) == 1 and users[0].op_type == "Reshape" and users[0].inputs[0] is node.outputs[0]
        else None
    )


def _reshape_like(graph: ir.Graph, node: ir.Node, part: ir.Value, like: ir.Value, width: int) -> ir.Value:
    """Reshape a part as the whole is reshaped, but for the last size."""
    sizes = _ints(like)
    if sizes is not None:
        name = "shape_" + "_".join(map(str, [*sizes[:-1], width]))
        shape = add_constant(graph, name, np.array([*sizes[:-1], width], np.int64))
    else:
        zero, last = (add_constant(graph, f"shape_{i}", np.array([i], np.int64)) for i in (0, -1))
        leading = _before(graph, node, "Slice", [like, zero, last])
        columns = add_constant(graph, f"shape_{width}", np.array([width], np.int64))
        shape = _before(graph, node, "Concat", [leading, columns], axis=0)
    return _before(graph, node, "Reshape", [part, shape])


def _before(graph: ir.Graph, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
    new = ir.node(op_type, inputs, attributes=attributes or None)
    graph.insert_before(node, new)
    return new.outputs[0]


def _take_place(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    old = node.outputs[0]
    value.name, value.shape, value.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _digest(array: np.ndarray) -> bytes:
    whole = np.ascontiguousarray(array)
    return hashlib.blake2b(str(whole.shape).encode() + whole.tobytes(), digest_size=16).digest()
