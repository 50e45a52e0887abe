"""float16: half the size, for devices that compute in it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator

import onnx

from elastic.export.weights import MIN_BYTES

NORMS = ("LayerNormalization", "Softmax", "Pow")
"""Operators of norms that stay in float32: squares of values above 255 are infinite in float16."""
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare")
_TAIL = ("Add", "Sqrt", "Clip", "Max", "Reciprocal", "Expand", "Unsqueeze", "Div", "Mul")
"""What may stand between a sum and the division by it, and that division."""
_ENDS = ("Div", "Mul")
_ANGLES = ("Cos", "Sin")
_TO_HALF, _TO_FLOAT = "_cast_to_fp16_node", "_cast_to_fp32_node"
"""How the converter names its casts."""
LARGEST = 1e4
"""Masks are lowered to minus this: small enough for Softmax, and no infinity when scores are added."""


def to_half(model: onnx.ModelProto, *, norms: bool = False, io: bool = False) -> onnx.ModelProto:
    """Return the graph in float16.

    Angles of rotary positions stay in float32 in any case: float16 knows no odd number above 2048.

    Args:
        model: a graph in float32, or with int8 linear layers.
        norms: convert norms and Softmax too.
        io: make inputs and outputs float16 too.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *_ANGLES]
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    nodes = set(_angles(model.graph))
    if not norms:
        blocked += [*NORMS, *REDUCTIONS]
        nodes.update(_ends_of_reductions(model.graph))
    _infer_types(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says of every constant that was clipped.
        converted = convert_float_to_float16(
            model,
            max_finite_val=LARGEST,
            keep_io_types=not io,
            disable_shape_infer=True,
            op_block_list=blocked,
            node_block_list=sorted(nodes),
        )
    _join_casts(converted.graph)
    sorted_model = ONNXModel(converted)
    sorted_model.topological_sort()  # Casts stand at the end.
    return sorted_model.model


def _infer_types(model: onnx.ModelProto) -> None:
    """Note type and shape of every value, in place, without the large weights: onnx takes no more than 2 GB."""
    small = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) < MIN_BYTES]
    large = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if len(tensor.raw_data) >= MIN_BYTES
    ]
    graph = onnx.helper.make_graph(
        model.graph.node, model.graph.name, [*model.graph.input, *large], model.graph.output, small
    )
    typed = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    del model.graph.value_info[:]
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(typed).graph.value_info)


def _join_casts(graph: onnx.GraphProto) -> None:
    """Let neighbours in float32 speak float32, in place.

    The converter casts each to float16 and back, and repeats casts where a value is used twice. A sum of squares would
    overflow between two operators that were kept in float32 for its sake.
    """
    down = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.name.endswith(_TO_HALF)
    }
    same: dict[str, str] = {}
    nodes: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.name.endswith(_TO_FLOAT) and node.input[0] in down:
            same[node.output[0]] = down[node.input[0]]
        else:
            nodes.setdefault(node.output[0], node)
    for node in nodes.values():
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    used = {name for node in nodes.values() for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes.values() if node.output[0] not in down or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _angles(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the nodes that compute angles: all that Cos and Sin depend on."""
    producers = {output: node for node in graph.node for output in node.output}
    queue = deque(node for node in graph.node if node.op_type in _ANGLES)
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        if node.name not in seen:
            seen.add(node.name)
            queue.extend(producers[name] for name in node.input if name in producers)
    yield from seen


def _ends_of_reductions(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield what comes between a sum and the division by it: epsilon, root, division."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    queue = deque(node for node in graph.node if node.op_type in REDUCTIONS)
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        for output in node.output:
            for consumer in consumers.get(output, ()):
                if consumer.op_type in _TAIL and consumer.name not in seen:
                    seen.add(consumer.name)
                    if consumer.op_type not in _ENDS:
                        queue.append(consumer)
    yield from seen
