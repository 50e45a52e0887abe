"""Checks by the published rules whether TensorRT would read a graph, where there is no TensorRT to ask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from elastic.errors import CheckpointError

from .operators import INDIRECT, MIN_OPSET, OLDEST, OPERATORS, Version, max_opset

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
"""What the parser knows of weights beside the graph (``WeightsContext.cpp`` of onnx-tensorrt)."""


@dataclass(frozen=True)
class Finding:
    """One thing in a graph that TensorRT does not read."""

    operator: str
    """Empty where it is not about a node."""
    node: str
    problem: str

    def __str__(self) -> str:
        where = f"operator {self.operator} (node '{self.node}') " if self.operator else ""
        return f"{where}{self.problem}"


def lint_for_tensorrt(
    model: ModelProto | Path, trt: str = "10.3", *, free: frozenset[str] | None = None
) -> tuple[Finding, ...]:
    """Return what TensorRT would refuse in a graph, by its published rules; nothing is run.

    Args:
        model: the graph, or its file.
        trt: the oldest version that should read it.
        free: the only dimensions of inputs and outputs that may have names; by default any may.

    Raises:
        CheckpointError: if ``trt`` is no version from 10.0 on.
    """
    version = parse_version(trt)
    folder = ""
    if isinstance(model, Path):
        folder, model = str(model.parent), onnx.load(model, load_external_data=False)
    constants = _constants(model.graph, {}, folder)
    types = {value.name: value.type.tensor_type.elem_type for value in _all_values(model)}
    return tuple(
        [
            *_check_opsets(model, version),
            *_check_dims(model.graph, free),
            *_check_weights(model.graph),
            *_check_graph(model.graph, version, constants, types),
        ]
    )


def parse_version(text: str) -> Version:
    """Read ``10.3`` or ``10.3.0.30``.

    Raises:
        CheckpointError: if it is no version from 10.0 on.
    """
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) < OLDEST[0]:
        raise CheckpointError(f"'{text}' is not a version of TensorRT from 10.0 on; write one such as 10.3.")
    return int(parts[0]), int(parts[1])


def _check_opsets(model: ModelProto, version: Version) -> Iterator[Finding]:
    newest = max_opset(version)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not MIN_OPSET <= opset.version <= newest:
            yield Finding(
                "",
                "",
                f"the operator set {opset.version} is not one of {MIN_OPSET} to {newest}, which {_name(version)} reads",
            )
    for function in model.functions:
        yield Finding("", "", f"the function '{function.name}' is not part of the graph itself; inline it")


def _check_dims(graph: GraphProto, free: frozenset[str] | None) -> Iterator[Finding]:
    for value in [*graph.input, *graph.output]:
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                yield Finding("", "", f"dimension {index} of '{value.name}' has neither a size nor a name")
            elif dim.dim_param and free is not None and dim.dim_param not in free:
                yield Finding(
                    "",
                    "",
                    f"dimension {index} of '{value.name}' has the name '{dim.dim_param}' where a number is needed",
                )


def _check_weights(graph: GraphProto) -> Iterator[Finding]:
    """Check weights beside the graph: what its file is called, and how much of it they are."""
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if unknown := sorted(place.keys() - EXTERNAL_KEYS):
            yield Finding(
                "", "", f"the weight '{tensor.name}' lies beside the graph and is described by '{unknown[0]}'"
            )
        if ".." in Path(place.get("location", "")).parts:
            yield Finding("", "", f"the weight '{tensor.name}' lies in '{place['location']}', outside of the folder")
        size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if place and int(place.get("length") or size) != size:
            yield Finding("", "", f"the weight '{tensor.name}' has {size} bytes, and {place['length']} of its file")


def _check_graph(
    graph: GraphProto, version: Version, constants: Mapping[str, TensorProto], types: Mapping[str, int]
) -> Iterator[Finding]:
    for index, node in enumerate(graph.node):
        name = node.name or f"number {index}"
        for problem in _check_node(node, version, constants, types):
            yield Finding(node.op_type, name, problem)
        for branch in _subgraphs(node):
            yield from _check_graph(branch, version, constants, types)


def _check_node(
    node: NodeProto, version: Version, constants: Mapping[str, TensorProto], types: Mapping[str, int]
) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"is of the domain '{node.domain}', and {_name(version)} reads standard operators alone"
        return
    since = OPERATORS.get(node.op_type)
    if since is None:
        advice = INDIRECT.get(node.op_type)
        yield f"is not read by TensorRT{f'; {advice}' if advice else ''}"
        return
    if since > version:
        yield f"is read from TensorRT {since[0]}.{since[1]} on, and not by {version[0]}.{version[1]}"
    if node.op_type in QUANTIZERS:
        yield from _check_zero_point(node, constants)
    elif node.op_type == "If":
        yield from _check_if(node)
    elif node.op_type == "TopK":
        yield from _check_topk(node, constants)
    elif node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "has more than one output, and TensorRT has the first alone"
    elif node.op_type == "CumSum" and node.input[1] not in constants:
        yield "has an axis that is not a constant"
    if node.op_type == "Cast" and _attribute(node, "to") == TensorProto.UINT8:
        yield "makes UINT8, which only inputs and outputs may be"
    else:
        yield from (
            f"has '{output}' of type UINT8, which only inputs and outputs may be"
            for output in node.output
            if types.get(output) == TensorProto.UINT8
        )


def _check_zero_point(node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear" and not _attribute(node, "output_dtype"):
            yield "has no zero point, which makes its result UINT8; give one of type INT8 and value 0"
        return
    zero_point = constants.get(node.input[2])
    if zero_point is None:
        yield "has a zero point that is not a constant"
    elif zero_point.data_type == TensorProto.UINT8:
        yield "quantizes to UINT8; quantize to INT8 with zero point 0 instead"
    elif np.any(numpy_helper.to_array(zero_point) != 0):
        yield "has a zero point other than 0; quantize symmetrically instead"


def _check_if(node: NodeProto) -> Iterator[str]:
    branches = {attribute.name: attribute.g for attribute in node.attribute}
    then, other = branches["then_branch"].output, branches["else_branch"].output
    for one, two in zip(then, other, strict=True):
        if one.name == two.name:
            yield f"has the output '{one.name}' in both branches; their names must differ"
        ranks = [_rank(value) for value in (one, two)]
        if None not in ranks and ranks[0] != ranks[1]:
            yield (
                f"has the branches '{one.name}' of rank {ranks[0]} and '{two.name}' of rank {ranks[1]}; "
                "they must be equal"
            )


def _check_topk(node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[str]:
    if node.input[1] not in constants:
        yield "has a K that is not a constant"
    if _attribute(node, "sorted") == 0:
        yield "is not sorted, and TensorRT sorts"


def _constants(graph: GraphProto, found: dict[str, TensorProto], folder: str) -> dict[str, TensorProto]:
    """Return every initializer and constant of a graph and its branches by name, small external ones loaded."""
    for tensor in graph.initializer:
        if tensor.external_data and len(tensor.dims) <= 1:
            tensor = _loaded(tensor, folder)
        found[tensor.name] = tensor
    for node in graph.node:
        if node.op_type == "Constant":
            value = _attribute(node, "value")
            found[node.output[0]] = value if value is not None else TensorProto(data_type=TensorProto.INT64, dims=[0])
        for branch in _subgraphs(node):
            _constants(branch, found, folder)
    return found


def _loaded(tensor: TensorProto, folder: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor, folder), tensor.name)


def _all_values(model: ModelProto) -> Iterator[ValueInfoProto]:
    ends = {value.name for value in [*model.graph.input, *model.graph.output]}
    yield from (value for value in model.graph.value_info if value.name not in ends)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)


def _rank(value: ValueInfoProto) -> int | None:
    return len(value.type.tensor_type.shape.dim) if value.type.tensor_type.HasField("shape") else None


def _name(version: Version) -> str:
    return f"TensorRT {version[0]}.{version[1]}"
