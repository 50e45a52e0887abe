"""Traces a model into an ONNX graph of standard operators."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from onnxscript import ir
from torch import nn

from elastic.errors import CheckError, CheckpointError

from .attention import traceable_attention
from .embedder import Exportable, body_of
from .inputs import ModelInputs, forward_outputs
from .names import name_transposed_weights
from .rewrite import rewrite
from .runtime.manifest import TensorSpec

OPSET = 20
IR_VERSION = 10
"""What ONNX Runtime 1.23, the last one for the Python of JetPack 6, still reads."""

SINGLE_FILE_LIMIT = 1_500_000_000
"""Bytes of weights that go inside the graph's file; protobuf ends at 2 GB."""

SUMS = {"past + sequence": "total", "sequence + past": "total"}
"""Sizes that the tracer derives, and what they are called here."""

GRAPH_NAME = "model.onnx"
WEIGHTS_NAME = f"{GRAPH_NAME}.data"


class _Positional(nn.Module):
    """The model with tensors in and tensors out: what the tracer understands."""

    def __init__(self, model: Exportable, inputs: ModelInputs) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = [spec.name for spec in self.inputs.specs]
        return tuple(forward_outputs(self.model, self.inputs, dict(zip(names, tensors, strict=True))).values())


def trace(
    model: Exportable,
    inputs: ModelInputs,
    output_names: Sequence[str],
    *,
    controls: Sequence[TensorSpec] = (),
    rule: Callable[[ir.Model], None] | None = None,
) -> ir.Model:
    """Trace a model that is in evaluation mode into a clean graph.

    Args:
        model: what is traced.
        inputs: what the graph takes.
        output_names: what it returns.
        controls: further inputs, which ``rule`` adds.
        rule: rewrites the graph further, while it still has the shapes that the tracer noted.

    Raises:
        CheckpointError: if the tracer cannot follow the model.
        CheckError: if the graph is not what was asked for.
    """
    # Two padded rows: a mask of ones would vanish from the graph, and a batch of 1 would become a constant.
    sample = inputs.sample({"batch": 2, "sequence": 6, "past": 3, "total": 9}, seed=0)
    tensors = tuple(torch.from_numpy(array).to(model.device) for array in sample.values())
    dynamic = tuple({i: n for i, n in enumerate(spec.shape) if isinstance(n, str)} for spec in inputs.specs)
    with traceable_attention(body_of(model)), _quiet():
        try:
            program = torch.onnx.export(
                _Positional(model, inputs).eval(),
                tensors,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs.specs],
                output_names=list(output_names),
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise CheckpointError(
                f"{type(body_of(model)).__name__} cannot be traced into an ONNX graph: {reason}"
            ) from error
    assert program is not None
    graph = program.model
    rewrite(graph)
    if rule is not None:
        rule(graph)
    _clean(graph)
    name_transposed_weights(graph.graph, model)
    check_graph(graph, (*inputs.specs, *controls), output_names)
    return graph


def write_graph(graph: ir.Model, folder: Path, *, weights_beside: bool = False) -> Path:
    """Write the graph with its weights inside, or beside it in one file: if that is asked for, or they are too large.

    ONNX Runtime maps weights that lie beside a graph into memory, instead of copying them: half of a session's memory,
    and no peak while it is opened.

    Raises:
        CheckError: if the ONNX checker refuses the graph.
    """
    path = folder / GRAPH_NAME
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    beside = weights_beside or weights >= SINGLE_FILE_LIMIT
    ir.save(graph, path, external_data=WEIGHTS_NAME if beside else None)
    check_file(path)
    return path


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save a graph with its weights inside, or beside it in one file if they are too large; then they leave ``model``.

    What was at ``path`` is replaced, and must have been loaded with its weights.
    """
    data = path.with_name(f"{path.name}.data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) >= SINGLE_FILE_LIMIT
    onnx.save(model, path, save_as_external_data=large, location=data.name if large else None)


def check_file(path: Path) -> None:
    """Check the file of a graph.

    Raises:
        CheckError: if the ONNX checker refuses it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from None


def output_specs(graph: ir.Model) -> tuple[TensorSpec, ...]:
    """Return names, types and shapes of the graph's outputs."""
    specs = []
    for value in graph.graph.outputs:
        assert value.name and value.dtype is not None and value.shape is not None
        shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
        specs.append(TensorSpec(value.name, value.dtype.numpy().name, shape))
    return tuple(specs)


def with_dtypes(specs: Sequence[TensorSpec], path: Path) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs with the types that they have in the graph of a file."""
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    return tuple(replace(spec, dtype=ir.DataType(kinds[spec.name]).numpy().name) for spec in specs)


def check_graph(graph: ir.Model, inputs: Sequence[TensorSpec], output_names: Sequence[str]) -> None:
    """Check that a graph has standard operators, and the inputs and outputs that were asked for.

    Raises:
        CheckError: naming the first thing that is not so.
    """
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph.all_nodes() if node.domain})
    if foreign or graph.functions:
        names = foreign or [str(identifier) for identifier in graph.functions]
        raise CheckError(f"the exported graph uses {', '.join(names)}, which is not a standard ONNX operator.")
    if graph.opset_imports != {"": OPSET}:
        raise CheckError(f"the exported graph has the operator sets {graph.opset_imports}, not {OPSET}.")
    found = [value.name for value in graph.graph.outputs]
    if found != list(output_names):
        raise CheckError(f"the exported graph returns {found}, and the model returns {list(output_names)}.")
    for value, spec in zip(graph.graph.inputs, inputs, strict=True):
        assert value.shape is not None
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        if (value.name, shape) != (spec.name, spec.shape):
            raise CheckError(
                f"the exported graph takes '{value.name}' of shape {shape}, where '{spec.name}' of shape {spec.shape} "
                "was asked for."
            )
    free = {name for spec in inputs for name in spec.shape if isinstance(name, str)}
    for spec in output_specs(graph):
        if unknown := [dim for dim in spec.shape if isinstance(dim, str) and dim not in free]:
            raise CheckError(
                f"output '{spec.name}' of the exported graph has the size '{unknown[0]}', which no input has."
            )


def _clean(model: ir.Model) -> None:
    """Take out what the tracer noted for itself, and name weights as the model does.

    Stack traces would make up most of the file of a graph.
    """
    model.ir_version = IR_VERSION
    model.doc_string = None
    model.metadata_props.clear()
    graph = model.graph
    used = {node.domain for node in graph.all_nodes()}
    for domain in [domain for domain in model.opset_imports if domain and domain not in used]:
        del model.opset_imports[domain]
    graph.doc_string = None
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type, value.shape = None, None
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape([SUMS.get(str(dim), dim) for dim in value.shape])
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.doc_string = None
        value.metadata_props.clear()
    for value in list(graph.initializers.values()):
        assert value.name is not None
        value.type, value.shape = None, None
        value.name = value.name.removeprefix("model.").removeprefix("transformer.")
        if value.const_value is not None:
            value.const_value.name = value.name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's notes to itself: what it logs, warns of, and prints when it fails."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
