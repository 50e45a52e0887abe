"""Routers inside a graph: each sequence of a batch computes the sub-layers that its own scores ask for.

MindSkip of Router-Tuning (arXiv 2410.13184), as `elastic.nested.gates` runs it: the score is a sigmoid of a linear map
of the mean of a sub-layer's normalised input, padding left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnxscript import ir
from transformers import PreTrainedModel

from elastic.nested import GateKey, Routing, get_elastic
from elastic.nested.routing import get_routers

from .branches import Nodes, take_over
from .runtime.manifest import TensorSpec
from .sublayers import Sublayer, nodes_between

BATCH = "batch"
ROUTER_THRESHOLDS = "router_thresholds"
"""A sub-layer computes where its router's score reaches this: ``(routers,)``. At 0 all computes, above 1 nothing."""


@dataclass(frozen=True)
class Routers:
    """The trained routers of a model, as a graph holds them."""

    routing: Routing
    weights: Mapping[GateKey, tuple[np.ndarray[Any, Any], float]]
    """For each gate a weight ``(hidden,)`` and a bias."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Routers:
        """Return the routers of a universal model.

        Raises:
            ElasticError: if it has none.
        """
        found, routing = get_routers(model), get_elastic(model).routing
        assert routing is not None
        heads: dict[GateKey, Any] = {key: found[str(key)] for key in routing.keys}
        arrays = {
            key: (head.weight.detach().cpu().numpy()[0], float(head.bias.detach())) for key, head in heads.items()
        }
        return cls(routing, arrays)

    @property
    def spec(self) -> TensorSpec:
        """The control input."""
        return TensorSpec(ROUTER_THRESHOLDS, "float32", (len(self.routing.keys),))

    def key_of(self, sublayer: Sublayer) -> GateKey | None:
        """Return the gate of a sub-layer, if it has one."""
        what = "attention" if sublayer.axis == "heads" else "mlp"
        keys = (GateKey(what, sublayer.layer), GateKey("block", sublayer.layer))  # type: ignore[arg-type]
        return next((key for key in keys if key in self.weights), None)


@dataclass(frozen=True)
class RoutedGraph:
    """A graph that is given routers, sub-layer by sub-layer."""

    graph: ir.Graph
    routers: Routers
    pooling: ir.Value | None
    """``(batch, 1, tokens)``: the share of each token in the mean; None where nothing is padded."""
    shared: frozenset[ir.Node]
    """Nodes that compute sizes of the whole batch."""

    @classmethod
    def of(cls, nodes: Nodes, routers: Routers, mask: ir.Value | None, shared: Collection[ir.Node]) -> RoutedGraph:
        """Return the graph of these nodes, whose padding is read from an attention mask ``(batch, tokens)``."""
        pooling = None
        if mask is not None:
            kept = nodes.new("Cast", [mask], to=ir.DataType.FLOAT.value)
            count = nodes.new("ReduceSum", [kept, nodes.integers(1)], keepdims=1)
            share = nodes.new("Div", [kept, nodes.new("Max", [count, nodes.scalar(1.0)])])
            pooling = nodes.new("Unsqueeze", [share, nodes.integers(1)])
        return cls(nodes.graph, routers, pooling, frozenset(shared))

    def rows(
        self,
        key: GateKey,
        sublayer: Sublayer,
        start: ir.Value,
        decided: ir.Value | None,
        attention_on: ir.Value | None,
    ) -> tuple[list[ir.Node], ir.Value]:
        """Return nodes that compute which rows of a sub-layer a gate lets through, and that, ``(batch,)``.

        The gate of a block is read at its attention, or at its MLP if the attention does not run.
        """
        if decided is not None and attention_on is None:
            return [], decided
        made, on = self.decide(key, start if sublayer.read is sublayer.start else sublayer.read, sublayer.name)
        if decided is not None:
            nodes = Nodes(self.graph)
            # ONNX Runtime has no Where of booleans.
            earlier = nodes.new("And", [attention_on, decided])
            own = nodes.new("And", [nodes.new("Not", [attention_on]), on])
            on = nodes.new("Or", [earlier, own])
            on.type = decided.type
            made = [*made, *nodes.made]
        return made, on

    def decide(self, key: GateKey, read: ir.Value, name: str) -> tuple[list[ir.Node], ir.Value]:
        """Return nodes that compute which rows a gate lets through, ``(batch,)``, from what its router reads."""
        nodes = Nodes(self.graph)
        weight, bias = self.routers.weights[key]
        if self.pooling is None:
            mean = nodes.new("ReduceMean", [read, nodes.integers(1)], keepdims=1)
        else:
            mean = nodes.new("MatMul", [self.pooling, read])
        product = nodes.new("MatMul", [mean, nodes.constant(weight.reshape(-1, 1).copy(), f"router.{name}.weight")])
        score = nodes.new("Sigmoid", [nodes.new("Add", [product, nodes.scalar(float(bias))])])
        thresholds = next(value for value in self.graph.inputs if value.name == ROUTER_THRESHOLDS)
        threshold = nodes.new("Gather", [thresholds, nodes.scalar(self.routers.routing.keys.index(key))])
        reached = nodes.new("GreaterOrEqual", [score, threshold])
        on = nodes.new("Reshape", [reached, nodes.integers(-1)])
        on.type = ir.TensorType(ir.DataType.BOOL)
        return nodes.made, on

    def gate(
        self, start: ir.Value, sublayer: Sublayer, members: Sequence[ir.Node], on: ir.Value, switch: ir.Value | None
    ) -> tuple[list[ir.Node], ir.Value, ir.Value]:
        """Let a sub-layer compute only the rows that are on.

        Args:
            start: the stream before it, as it is called now.
            sublayer: as it was traced.
            members: its nodes.
            on: which rows compute, ``(batch,)``.
            switch: whether the sub-layer runs at all; None if it always does.

        Returns:
            The nodes that compute those rows and put them back, the stream after it, and whether there are any rows.
        """
        read = start if sublayer.read is sublayer.start else sublayer.read
        before = [] if read is start else nodes_between(self.graph, start, read, self.shared)
        inner = [node for node in members if node not in set(before)]
        last = inner[-1]
        taken, put = Nodes(self.graph), Nodes(self.graph)
        chosen = on if switch is None else taken.new("And", [on, switch])
        rows = taken.new("Reshape", [taken.new("NonZero", [chosen]), taken.integers(-1)])
        any_on = taken.new("Greater", [taken.new("Size", [rows]), taken.scalar(0)])
        self._take_rows(taken, inner, start, rows)
        end = sublayer.end
        whole = put.new("ScatterND", [start, put.new("Unsqueeze", [rows, put.integers(1)]), end])
        whole.type, whole.shape = end.type, end.shape
        inside = [*inner, *put.made]
        take_over(self.graph, end, whole, set(inside))
        self.graph.remove(inner[:-1])
        self.graph.insert_before(last, [*taken.made, *inner[:-1]])
        self.graph.insert_after(last, put.made)
        return inside, whole, any_on

    def _take_rows(self, taken: Nodes, inner: Sequence[ir.Node], start: ir.Value, rows: ir.Value) -> None:
        """Let nodes read only some rows of everything that has one for each sequence."""
        own, known = set(inner), {}

        def rows_of(value: ir.Value) -> ir.Value:
            if value not in known:
                known[value] = make(value)
            return known[value]

        def make(value: ir.Value) -> ir.Value:
            producer = value.producer()
            if producer in self.shared and producer is not None:  # sizes of batch and sequence
                if producer.op_type == "Shape":
                    return taken.new("Shape", [rows_of(start)], start=0, end=2)
                inputs = [v if v is None or v.const_value is not None else rows_of(v) for v in producer.inputs]
                return taken.new(producer.op_type, inputs, axis=0)
            if value.shape is not None and len(value.shape) and str(value.shape[0]) == BATCH:
                return taken.new("Gather", [value, rows], axis=0)
            return value

        for node in inner:
            for index, value in enumerate(node.inputs):
                if value is not None and value.const_value is None and value.producer() not in own:
                    node.replace_input_with(index, rows_of(value))
