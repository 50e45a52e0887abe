"""Parts of a graph that run only where an input of the graph says so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnxscript import ir

from elastic.errors import CheckpointError

Builder = Callable[["Nodes"], ir.Value]
"""Adds nodes, and returns what they compute."""


class Nodes:
    """New nodes in order, with names that no other value of the graph has, at any depth."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        """The outermost graph, which holds all weights."""
        self.made: list[ir.Node] = []

    def inside(self) -> Nodes:
        """Return an empty list of nodes for a branch."""
        return Nodes(self.graph)

    def new(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.add(ir.node(op_type, inputs, attributes))

    def add(self, node: ir.Node) -> ir.Value:
        """Add a node, and name its outputs."""
        for value in node.outputs:
            value.name = self.name(node.op_type)
        self.made.append(node)
        return node.outputs[0]

    def name(self, stem: str) -> str:
        """Return a name that is not in use."""
        number = self.graph.meta["elastic_names"] = self.graph.meta.get("elastic_names", 0) + 1
        return f"elastic_{stem}_{number}"

    def constant(self, array: np.ndarray[Any, Any], stem: str | None = None) -> ir.Value:
        """Return a constant: those without a name are shared, and weights have names of their own."""
        assert stem is None or stem not in self.graph.initializers
        if stem is None:
            stem = f"elastic_const_{array.dtype.name}_{'x'.join(map(str, array.shape))}_" + "_".join(
                map(str, array.ravel().tolist())
            )
        if stem not in self.graph.initializers:
            tensor = ir.tensor(array, name=stem)
            shape: Any = ir.Shape(array.shape)
            kind: Any = ir.TensorType(tensor.dtype)
            self.graph.register_initializer(ir.Value(name=stem, type=kind, shape=shape, const_value=tensor))
        return self.graph.initializers[stem]

    def integers(self, *values: int) -> ir.Value:
        """Return a constant vector of int64."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: int | float) -> ir.Value:
        """Return a constant of no dimension: int64, or float32."""
        return self.constant(np.array(value, np.int64 if isinstance(value, int) else np.float32))

    def choose(self, condition: ir.Value, then: Builder, otherwise: Builder, like: ir.Value) -> ir.Value:
        """Add an If with one output, of the type of ``like``."""
        branches = {}
        for side, build in (("then_branch", then), ("else_branch", otherwise)):
            nodes = self.inside()
            branches[side] = nodes.branch([build(nodes)], [like])
        return self.new("If", [condition], **branches)

    def branch(self, outputs: Sequence[ir.Value], like: Sequence[ir.Value]) -> ir.Graph:
        """Return these nodes as the branch of an If."""
        for value, pattern in zip(outputs, like, strict=True):
            value.type, value.shape = pattern.type, pattern.shape
        return ir.Graph([], outputs, nodes=self.made, name=self.name("branch"))


def run_if(
    graph: ir.Graph,
    condition: ir.Value,
    nodes: Sequence[ir.Node],
    otherwise: Mapping[ir.Value, Builder],
) -> list[ir.Value]:
    """Put nodes of a graph into a branch that runs where the condition is true, and return the values that result.

    Args:
        graph: the outermost graph.
        condition: computed before the last of the nodes.
        nodes: in order.
        otherwise: for each value that is used outside of these nodes, what it is where they do not run.

    Raises:
        CheckpointError: if a further value of these nodes is used outside.
    """
    inside = _with_nested(nodes)
    outputs = list(otherwise)
    for node in nodes:
        for value in node.outputs:
            used = value.is_graph_output() or any(use.node not in inside for use in value.uses())
            if used and value not in otherwise:
                raise CheckpointError(
                    f"this model cannot be one elastic graph: '{value.name}' of a part that may be skipped is used "
                    "elsewhere; export a family instead (--to family)."
                )
    made = Nodes(graph)
    other = made.inside()
    else_branch = other.branch([otherwise[value](other) for value in outputs], outputs)
    after = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in outputs]
    for old, new in zip(outputs, after, strict=True):
        take_over(graph, old, new, inside)
        old.name = made.name("then")
    anchor = ir.node("Identity", [])
    graph.insert_after(nodes[-1], anchor)
    graph.remove(nodes)
    then_branch = ir.Graph([], outputs, nodes=nodes, name=made.name("branch"))
    chosen = ir.node("If", [condition], {"then_branch": then_branch, "else_branch": else_branch}, outputs=after)
    graph.insert_before(anchor, [*made.made, chosen])
    graph.remove(anchor)
    return after


def take_over(graph: ir.Graph, old: ir.Value, new: ir.Value, inside: Collection[ir.Node]) -> None:
    """Let everything but the nodes ``inside`` read another value, the graph's outputs included."""
    for use in list(old.uses()):
        if use.node not in inside:
            use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
            new.name, old.name = old.name, f"{old.name}_before"


def _with_nested(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return nodes with those of their branches, which read values of the graph around them."""
    found = set(nodes)
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found.update(attribute.as_graph().all_nodes())
    return found
