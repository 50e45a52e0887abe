"""FFNs of a graph as nested blocks, of which an input of the graph says how many run.

A wider FFN is a narrower one and further neurons (MatFormer, arXiv 2310.07707, section 3), so its output is a sum over
blocks of neurons. Block after block adds its product to that of those before it; the weights are never sliced at run
time, so that ONNX Runtime can arrange them once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnxscript import ir

from elastic.errors import CheckpointError

from .branches import Builder, Nodes, run_if
from .sublayers import nodes_between

Array = np.ndarray[Any, Any]

_OPERATORS = """
Abs Add Cast Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Max Min Mul Neg Pow Reciprocal Relu Selu Sigmoid
Softplus Sqrt Sub Tanh
"""
ELEMENTWISE = frozenset(re.findall("[A-Za-z]+", _OPERATORS))


class _Neurons:
    """The part of an FFN's graph from its projections in to its projection out, for some of its neurons."""

    def __init__(self, nodes: Nodes, ffn: str, rows: ir.Value, first: int, last: int) -> None:
        self.nodes = nodes
        self.ffn = ffn
        self.rows = rows
        """The input of the projections, ``(rows, hidden)``."""
        self.first, self.last = first, last
        self.known: dict[tuple[ir.Value, int], ir.Value] = {}

    def compute(self, value: ir.Value, offset: int = 0) -> ir.Value:
        """Return what ``value`` has for these neurons, ``(rows, neurons)``.

        Args:
            value: of the whole FFN.
            offset: where the neurons begin in its last dimension, which may hold several projections.
        """
        key = (value, offset)
        if key not in self.known:
            self.known[key] = self._compute(value, offset)
        return self.known[key]

    def _compute(self, value: ir.Value, offset: int) -> ir.Value:
        node = value.producer()
        if node is None:
            raise _unknown(self.ffn, "an input")
        if is_product(node):
            weight, bias = weights_of(node)
            name = f"{self.ffn}.in_{node.outputs[0].name}.{offset + self.first}"
            part = slice(offset + self.first, offset + self.last)
            return product(self.nodes, self.rows, weight[:, part], None if bias is None else bias[part], name)
        first = node.inputs[0]
        assert first is not None
        if node.op_type == "Reshape":
            return self.compute(first, offset)
        if node.op_type == "Split":
            return self.compute(first, offset + _split_start(node, value, self.ffn))
        if node.op_type == "Slice":
            return self.compute(first, offset + _slice_start(node, self.ffn))
        if node.op_type not in ELEMENTWISE:
            raise _unknown(self.ffn, f"'{node.op_type}'")
        inputs = [None if v is None else self._input(v, offset) for v in node.inputs]
        return self.nodes.add(ir.Node("", node.op_type, inputs, list(node.attributes.values())))

    def _input(self, value: ir.Value, offset: int) -> ir.Value:
        constant = value.const_value
        if constant is None:
            return self.compute(value, offset)
        if constant.size == 1:
            return value
        array = constant.numpy()
        part = array[..., offset + self.first : offset + self.last]
        return self.nodes.constant(np.ascontiguousarray(part), f"{self.ffn}.{value.name}.{offset + self.first}")


def nest_ffn(
    graph: ir.Graph,
    members: Sequence[ir.Node],
    sublayer: str,
    widths: Sequence[int],
    wider: Sequence[ir.Value],
    runs: ir.Value | None,
    start: ir.Value,
    end: ir.Value,
) -> ir.Value:
    """Replace an FFN sub-layer by nested blocks of neurons, and return the stream after it.

    Args:
        graph: the outermost graph.
        members: the nodes of the sub-layer, in order.
        sublayer: its name.
        widths: ascending; the last is the whole.
        wider: for each block but the first, whether it runs; false where the sub-layer does not.
        runs: whether the sub-layer runs; None if it always does.
        start: the stream before it.
        end: the stream after it until now.

    Raises:
        CheckpointError: if what lies between the projections is not known to treat neurons one by one.
    """
    products = [node for node in members if is_product(node)]
    out = products[-1]
    weight, bias = weights_of(out)
    inputs = {node.inputs[0] for node in products[:-1]}
    if len(inputs) != 1 or len(weight) != widths[-1]:
        raise _unknown(sublayer, "another number of projections")
    (source,) = inputs
    hidden_in = out.inputs[0]
    assert source is not None and hidden_in is not None
    nodes = Nodes(graph)
    rows = source
    if products[0].op_type != "Gemm":
        rows = nodes.new("Reshape", [source, nodes.integers(-1, weights_of(products[0])[0].shape[0])])

    def block(nodes: Nodes, index: int, total: ir.Value | None) -> ir.Value:
        first, last = (0, *widths)[index], widths[index]
        neurons = _Neurons(nodes, sublayer, rows, first, last).compute(hidden_in)
        part = nodes.constant(np.ascontiguousarray(weight[first:last]), f"{sublayer}.out.{first}")
        if total is None and bias is None:
            return nodes.new("MatMul", [neurons, part])
        before = nodes.constant(bias, f"{sublayer}.out.bias") if total is None and bias is not None else total
        return nodes.new("Gemm", [neurons, part, before])

    total = block(nodes, 0, None)
    for value, width in ((rows, weights_of(products[0])[0].shape[0]), (total, weight.shape[1])):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, width])
    first = list(nodes.made)
    for index, condition in enumerate(wider, 1):
        total = nodes.choose(
            condition,
            lambda inner, index=index, total=total: block(inner, index, total),  # type: ignore[misc]
            lambda inner, total=total: inner.new("Identity", [total]),  # type: ignore[misc]
            first[-1].outputs[0],
        )
    chosen = nodes.made[len(first) :]
    if out.op_type != "Gemm":
        # A norm's output would have to leave its branch; the stream has as many rows.
        leading = nodes.new("Shape", [start if source.producer() in members else source], start=0, end=2)
        shape = nodes.new("Concat", [leading, nodes.integers(weight.shape[1])], axis=0)
        total = nodes.new("Reshape", [total, shape])
    graph.insert_before(out, nodes.made)
    ir.convenience.replace_all_uses_with(out.outputs[0], total, replace_graph_outputs=True)
    kept = _remove_unused(graph, [*members, *nodes.made])
    if runs is None:
        return end
    order = {node: index for index, node in enumerate(graph)}
    kept = sorted(kept, key=order.__getitem__)
    behind = set(nodes_between(graph, chosen[-1].outputs[0], end)).intersection(kept)
    before = [node for node in kept if node not in behind and node not in chosen]
    run_if(graph, runs, before, {value: _nothing(value) for value in _read_outside(before)})
    return run_if(
        graph,
        runs,
        [node for node in kept if node in behind],
        {end: lambda other: other.new("Identity", [start])},
    )[0]


def _remove_unused(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Remove those of the nodes, in order, that nothing reads, and return the others."""
    kept = []
    for node in reversed(nodes):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            kept.append(node)
        else:
            graph.remove(node, safe=True)
    return kept[::-1]


def _read_outside(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    outputs = [value for node in nodes for value in node.outputs]
    return [value for value in outputs if any(use.node not in nodes for use in value.uses())]


def _nothing(value: ir.Value) -> Builder:
    """Return what makes an empty tensor in the place of a value that nothing will read."""
    assert value.shape is not None and value.dtype is not None
    shape = [size if isinstance(size, int) else 0 for size in value.shape]
    zero = ir.tensor(np.zeros(1, value.dtype.numpy()))
    return lambda other: other.new("ConstantOfShape", [other.integers(*shape)], value=zero)


def is_product(node: ir.Node) -> bool:
    """Whether a node multiplies rows by a weight."""
    if node.op_type not in ("MatMul", "Gemm") or node.inputs[1] is None:
        return False
    constant = node.inputs[1].const_value
    return constant is not None and len(constant.shape) == 2


def weights_of(node: ir.Node) -> tuple[Array, Array | None]:
    """Return weight ``(in, out)`` and bias ``(out,)`` of a product."""
    weight = _array(node.inputs[1])
    assert weight is not None
    if node.op_type == "MatMul":
        return weight, None
    if "transB" in node.attributes and node.attributes["transB"].as_int():
        weight = weight.T
    return weight, _array(node.inputs[2]) if len(node.inputs) > 2 else None


def product(nodes: Nodes, rows: ir.Value, weight: Array, bias: Array | None, name: str) -> ir.Value:
    """Add the product of rows and a weight ``(in, out)``."""
    kept = nodes.constant(np.ascontiguousarray(weight), name)
    if bias is None:
        return nodes.new("MatMul", [rows, kept])
    return nodes.new("Gemm", [rows, kept, nodes.constant(np.ascontiguousarray(bias), f"{name}.bias")])


def _split_start(node: ir.Node, value: ir.Value, where: str) -> int:
    whole = node.inputs[0]
    assert whole is not None
    index = list(node.outputs).index(value)
    if len(node.inputs) > 1 and (sizes := _array(node.inputs[1])) is not None:
        return int(sizes[:index].sum())
    before = [output.shape[-1] if output.shape is not None else None for output in node.outputs[:index]]
    if not all(isinstance(size, int) for size in before):
        raise _unknown(where, "a split of unknown sizes")
    return sum(before)  # type: ignore[arg-type]


def _slice_start(node: ir.Node, where: str) -> int:
    start = _array(node.inputs[1])
    if start is None or start.size != 1:
        raise _unknown(where, "a slice of unknown place")
    return int(start.reshape(-1)[0])


def _array(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _unknown(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} of this model has {what} between its projections, so its FFN cannot be nested blocks; export a "
        "family instead (--to family)."
    )
