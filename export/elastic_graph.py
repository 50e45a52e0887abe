"""One graph for many subnets: FFN widths and skipped sub-layers are inputs of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from elastic.errors import SpaceError
from elastic.nested import GateKey
from elastic.space import ResolvedSpace, Subnet

from .branches import Builder, Nodes, run_if
from .nested_ffn import nest_ffn
from .routed_graph import RoutedGraph, Routers
from .runtime.manifest import PAST, PRESENT, TensorSpec
from .sublayers import Sublayer, nodes_of, share_shapes, take_sublayers

FFN_BLOCKS = "ffn_blocks"
"""How many blocks of each layer's FFN run: ``(layers,)``, 0 skips the MLP sub-layer."""
ATTENTION_ON = "attention_on"
"""Which layers' attention runs: ``(layers,)``."""


@dataclass(frozen=True)
class Controls:
    """What the control inputs of an elastic graph can say."""

    num_layers: int
    widths: tuple[int, ...]
    """FFN widths, ascending: block by block one wider."""
    heads: int
    """Query heads of every attention that runs."""
    skips_attention: bool
    skips_mlp: bool

    @classmethod
    def of(cls, space: ResolvedSpace) -> Controls:
        """Return what a space needs: nothing that all of its subnets have in common."""
        num_layers, skeletons = space.dims.num_layers, list(space.skeletons())
        return cls(
            num_layers=num_layers,
            widths=space.ffn,
            heads=space.heads[-1],
            skips_attention=any(len(attention) < num_layers for attention, _ in skeletons),
            skips_mlp=any(len(mlp) < num_layers for _, mlp in skeletons),
        )

    @property
    def whole(self) -> Subnet:
        """The subnet with everything that the graph holds."""
        return Subnet((self.widths[-1],) * self.num_layers, (self.heads,) * self.num_layers)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The control inputs."""
        blocks = [TensorSpec(FFN_BLOCKS, "int64", (self.num_layers,))] if self.has_blocks else []
        switches = [TensorSpec(ATTENTION_ON, "bool", (self.num_layers,))] if self.skips_attention else []
        return (*blocks, *switches)

    @property
    def has_blocks(self) -> bool:
        """Whether anything about MLP sub-layers is left to say."""
        return self.skips_mlp or len(self.widths) > 1

    def values(self, subnet: Subnet) -> dict[str, list[int]]:
        """Return the control inputs that select a subnet.

        Raises:
            SpaceError: if the graph does not hold it (says why).
        """
        if subnet.hidden is not None:
            raise SpaceError("an elastic graph has one hidden size")
        if subnet.embedding_dim is not None:
            raise SpaceError("an elastic graph returns whole embeddings")
        if any(heads not in (0, self.heads) for heads in subnet.heads):
            raise SpaceError(f"an elastic graph has {self.heads} heads in every layer")
        if any(ffn not in (0, *self.widths) for ffn in subnet.ffn):
            raise SpaceError(f"an elastic graph has the FFN widths {list(self.widths)}")
        if (not self.skips_mlp and 0 in subnet.ffn) or (not self.skips_attention and 0 in subnet.heads):
            raise SpaceError("an elastic graph skips only what subnets of the space skip")
        found = {}
        if self.has_blocks:
            found[FFN_BLOCKS] = [(0, *self.widths).index(ffn) for ffn in subnet.ffn]
        if self.skips_attention:
            found[ATTENTION_ON] = [int(heads > 0) for heads in subnet.heads]
        return found

    def draw(self, rng: random.Random) -> Subnet:
        """Draw any subnet that the graph holds, one layer kept at least."""
        ffn = (0, *self.widths) if self.skips_mlp else self.widths
        heads = (0, self.heads) if self.skips_attention else (self.heads,)
        while True:
            layers = range(self.num_layers)
            subnet = Subnet(tuple(rng.choice(ffn) for _ in layers), tuple(rng.choice(heads) for _ in layers))
            if subnet.kept_layers:
                return subnet


def make_elastic_graph(model: ir.Model, controls: Controls, routers: Routers | None = None) -> None:
    """Turn the marked graph of the largest subnet into an elastic one, in place.

    Args:
        model: what was traced.
        controls: what its control inputs can say.
        routers: decide in the graph, for each sequence, what of the chosen subnet it computes.

    Raises:
        CheckpointError: if the architecture is computed in a way that cannot be taken apart.
    """
    graph = model.graph
    sublayers = take_sublayers(graph)
    shared = share_shapes(graph, sublayers)
    members = {sublayer.name: nodes_of(graph, sublayer, shared) for sublayer in sublayers}
    for spec in (*controls.specs, *([routers.spec] if routers else [])):
        dtype = ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
        graph.inputs.append(ir.Value(name=spec.name, type=dtype, shape=ir.Shape(spec.shape)))
    given = {value.name: value for value in graph.inputs}
    nodes = Nodes(graph)
    surgery = _Surgery(
        graph=graph,
        controls=controls,
        given=given,
        nodes=nodes,
        wider=_reached(nodes, given[FFN_BLOCKS], controls) if controls.has_blocks else None,
        new_tokens=_new_tokens(nodes, given) if any(str(name).startswith(PAST) for name in given) else None,
        routed=None if routers is None else RoutedGraph.of(nodes, routers, given.get("attention_mask"), shared),
    )
    for sublayer in sublayers:
        if members[sublayer.name]:
            surgery.open_up(sublayer, members[sublayer.name])
    graph.insert_before(graph[0], nodes.made)
    graph.sort()  # A branch is put in the place of its last node.
    RemoveUnusedNodesPass()(model)


@dataclass
class _Surgery:
    """One graph, sub-layer by sub-layer from the first on."""

    graph: ir.Graph
    controls: Controls
    given: dict[str | None, ir.Value]
    """The inputs."""
    nodes: Nodes
    """What comes first in the graph."""
    wider: Callable[[int, int], ir.Value] | None
    """For a layer and a block of its FFN, whether it runs."""
    new_tokens: ir.Value | None
    """By how much a cache grows, as Pad takes it."""
    routed: RoutedGraph | None
    streams: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """What the stream is called behind a part that may be skipped."""
    decided: dict[GateKey, ir.Value] = field(default_factory=dict)
    """Which rows the gates of whole layers let through."""

    def open_up(self, sublayer: Sublayer, parts: Sequence[ir.Node]) -> None:
        """Let the inputs decide whether a sub-layer runs, for which rows, and how wide.

        No branch lies inside another: ONNX Runtime arranges weights before it runs only for nodes of the graph that
        holds them, and of its own branches (`SessionState::PrepackConstantInitializedTensors` looks one graph up).
        """
        start, end = self.streams.get(sublayer.start, sublayer.start), sublayer.end
        runs = self._switch(sublayer)
        key = None if self.routed is None else self.routed.routers.key_of(sublayer)
        if self.routed is not None and key is not None:
            known = self.decided.get(key)
            made, rows = self.routed.rows(key, sublayer, start, known, self._attention_on(sublayer.layer))
            self.graph.insert_before(parts[-1], made)
            self.decided.setdefault(key, rows)
            parts, end, runs = self.routed.gate(start, sublayer, parts, rows, runs)
        if sublayer.axis == "ffn" and self.wider is not None and len(self.controls.widths) > 1:
            wider = [self.wider(sublayer.layer, block) for block in range(1, len(self.controls.widths))]
            if key is not None and runs is not None:
                nodes = Nodes(self.graph)
                wider = [nodes.new("And", [condition, runs]) for condition in wider]
                decided = runs.producer()
                assert decided is not None
                self.graph.insert_after(decided, nodes.made)
            end = nest_ffn(self.graph, parts, sublayer.name, self.controls.widths, wider, runs, start, end)
        elif runs is not None:
            otherwise = {end: _identity(start), **self._caches(sublayer)}
            end = run_if(self.graph, runs, parts, otherwise)[0]
        self.streams[sublayer.end] = end

    def _attention_on(self, layer: int) -> ir.Value | None:
        if not self.controls.skips_attention:
            return None
        return self.nodes.new("Gather", [self.given[ATTENTION_ON], self.nodes.scalar(layer)])

    def _switch(self, sublayer: Sublayer) -> ir.Value | None:
        """Return whether a sub-layer runs; None if it always does."""
        if sublayer.axis == "heads":
            return self._attention_on(sublayer.layer)
        return self.wider(sublayer.layer, 0) if self.controls.skips_mlp and self.wider is not None else None

    def _caches(self, sublayer: Sublayer) -> dict[ir.Value, Builder]:
        """Return what the caches of attention are where it does not run."""
        found: dict[ir.Value, Builder] = {}
        for value in self.graph.outputs:
            if sublayer.axis == "heads" and str(value.name).startswith(f"{PRESENT}.{sublayer.layer}."):
                found[value] = _lengthened(self.given[str(value.name).replace(PRESENT, PAST, 1)], self.new_tokens)
        return found


def _identity(value: ir.Value) -> Builder:
    return lambda other: other.new("Identity", [value])


def _lengthened(past: ir.Value, new_tokens: ir.Value | None) -> Builder:
    """Return what makes the cache of attention that does not run: as it was, and zeros for new tokens."""
    return lambda other: other.new("Pad", [past, new_tokens, None, other.integers(2)], mode="constant")


def _reached(nodes: Nodes, blocks: ir.Value, controls: Controls) -> Callable[[int, int], ir.Value]:
    """Return what says, for a layer and a block, whether the block runs."""
    count = len(controls.widths)
    table = nodes.new("Greater", [nodes.new("Unsqueeze", [blocks, nodes.integers(1)]), nodes.integers(*range(count))])
    flat = nodes.new("Reshape", [table, nodes.integers(-1)])
    return lambda layer, block: nodes.new("Gather", [flat, nodes.scalar(layer * count + block)])


def _new_tokens(nodes: Nodes, given: dict[str | None, ir.Value]) -> ir.Value:
    """Return by how much a cache grows, as Pad takes it."""
    length = nodes.new("Shape", [given["input_ids"]], start=1, end=2)
    return nodes.new("Concat", [nodes.integers(0), length], axis=0)
