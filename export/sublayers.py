"""The sub-layers of a traced graph: where each begins and ends, and the nodes that it consists of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from onnxscript import ir
from torch import nn
from transformers import PreTrainedModel

from elastic.families import get_family

_MARK = ("elastic", "Mark")
"""Domain and type of the nodes that note a place; none of them is left in a graph."""

Axis = Literal["heads", "ffn"]
_END = "end"


@dataclass(frozen=True)
class Sublayer:
    """One attention or MLP sub-layer of a graph, with its norms and its residual connection."""

    axis: Axis
    layer: int
    start: ir.Value
    """The residual stream that it reads."""
    read: ir.Value
    """What its first projections read: the normalised stream, or the stream itself where the norm comes after."""
    end: ir.Value
    """The residual stream that it leaves."""

    @property
    def name(self) -> str:
        """A readable name, unique in the graph."""
        return f"{'attention' if self.axis == 'heads' else 'mlp'}_{self.layer}"


@contextmanager
def marked(model: PreTrainedModel) -> Iterator[None]:
    """Let every forward pass of the model note where its sub-layers begin, for `take_sublayers` to find."""
    family = get_family(model.config)
    layers = family.find_layers(model)[1]
    hooks = []
    for index, layer in enumerate(layers):
        for axis, modules, inputs in (
            ("heads", list(family.skip_attention), [p.path for p in family.head_inputs]),
            ("ffn", list(family.skip_mlp), list(family.ffn_inputs)),
        ):
            reads = next(m for m in modules if any(f"{path}.".startswith(f"{m}.") for path in inputs))
            for kind, path in (("start", modules[0]), ("read", reads)):
                hook = _mark_input(f"{axis}:{index}:{kind}")
                hooks.append(layer.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
    hooks.append(layers[-1].register_forward_hook(_mark_output))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _mark(stream: torch.Tensor, name: str) -> torch.Tensor:
    marked = torch.onnx.ops.symbolic(
        "::".join(_MARK), (stream,), {"name": name}, dtype=stream.dtype, shape=stream.shape, version=1
    )
    assert isinstance(marked, torch.Tensor)
    return marked


def _mark_input(name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (_mark(args[0], name), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _mark(kwargs["hidden_states"], name)}

    return hook


def _mark_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (_mark(output[0], _END), *output[1:])
    return _mark(output, _END)


def take_sublayers(graph: ir.Graph) -> list[Sublayer]:
    """Remove the marks of a graph, and return its sub-layers in the order in which they run."""
    found: dict[str, ir.Value] = {}
    names = [value.name for value in graph.outputs]
    for node in list(graph):
        if (node.domain, node.op_type) != _MARK:
            continue
        value = node.inputs[0]
        assert value is not None
        found[node.attributes["name"].as_string()] = value
        ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
    places = [tuple(name.split(":")) for name in found if name.endswith(":start")]
    order: list[tuple[Axis, str]] = [(axis, layer) for axis, layer, _ in places]  # type: ignore[misc]
    ends = [*(found[f"{axis}:{layer}:start"] for axis, layer in order[1:]), found[_END]]
    return [
        Sublayer(axis, int(layer), found[f"{axis}:{layer}:start"], found[f"{axis}:{layer}:read"], end)
        for (axis, layer), end in zip(order, ends, strict=True)
    ]


def nodes_of(graph: ir.Graph, sublayer: Sublayer, shared: Collection[ir.Node] = ()) -> list[ir.Node]:
    """Return the nodes that compute a sub-layer, and those that compute for it alone, in the order of the graph."""
    return nodes_between(graph, sublayer.start, sublayer.end, shared)


def nodes_between(graph: ir.Graph, start: ir.Value, end: ir.Value, shared: Collection[ir.Node] = ()) -> list[ir.Node]:
    """Return the nodes that follow from one value and lead to another, with those that serve these alone.

    Args:
        graph: the outermost graph.
        start: where they begin.
        end: where they end.
        shared: nodes that are not among them.
    """
    before = _ancestors(end, start)
    order = [node for node in graph if node in before and node not in shared]
    follow: set[ir.Node] = set()
    reached = {start}
    for node in order:
        if any(value in reached for value in node.inputs):
            follow.add(node)
            reached.update(node.outputs)
    for node in reversed(order):
        if node not in follow and _serves(node, follow):
            follow.add(node)
    return [node for node in order if node in follow]


def _ancestors(end: ir.Value, start: ir.Value | None = None) -> set[ir.Node]:
    seen: set[ir.Node] = set()
    waiting = [end]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value is start or node is None or node in seen:
            continue
        seen.add(node)
        waiting += [v for v in node.inputs if v is not None]
    return seen


def _serves(node: ir.Node, others: set[ir.Node]) -> bool:
    uses = [use.node for value in node.outputs for use in value.uses()]
    return bool(uses) and not any(v.is_graph_output() for v in node.outputs) and all(use in others for use in uses)


def share_shapes(graph: ir.Graph, sublayers: Sequence[Sublayer]) -> set[ir.Node]:
    """Take sizes of batch and sequence from the stream before the first sub-layer, and return the nodes that do.

    The tracer's sizes that several sub-layers share may lie inside one that does not run.
    """
    stream = sublayers[0].start
    place, producer = None, stream.producer()
    shared: set[ir.Node] = set()
    earlier = _ancestors(stream)
    for node in list(graph):
        if node.op_type != "Shape" or (_int(node, "start"), _int(node, "end")) != (0, 2) or producer is None:
            continue
        value = node.inputs[0]
        if value is None or not _same_rows(value, stream):
            continue
        rows = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Concat"]
        moved = [node, *(n for n in rows if all(v is node.outputs[0] or _constant(v) is not None for v in n.inputs))]
        if node in earlier:  # The stream itself is computed with this size.
            shared.update(moved)
            continue
        node.replace_input_with(0, stream)
        graph.remove(moved)
        graph.insert_after(place or producer, moved)
        place = moved[-1]
        shared.update(moved)
    return shared


def _same_rows(value: ir.Value, stream: ir.Value) -> bool:
    if value.shape is None or stream.shape is None or len(value.shape) < 3:
        return False
    return [str(dim) for dim in value.shape[:2]] == [str(dim) for dim in stream.shape[:2]]


def _int(node: ir.Node, name: str) -> int | None:
    return node.attributes[name].as_int() if name in node.attributes else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value
