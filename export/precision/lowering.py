"""From a graph in float32 to graphs of one precision, with any choice of linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from elastic.export.graph import save_model
from elastic.export.runtime.manifest import TensorSpec
from elastic.export.runtime.ort import open_graph

from .calibration import Feed, complete
from .dynamic import to_dynamic
from .half import to_half
from .linears import Linear, prepare_linears, select
from .options import FP16, INT8, INT8_STATIC, TENSORRT, X86, PrecisionOptions
from .static import to_static, to_unsigned
from .weights import quantize_embeddings, to_int4


@dataclass(frozen=True)
class Activation:
    """What a linear layer was given on calibration data."""

    largest: float
    """The largest absolute value."""
    rows: float
    """How many vectors of one example on average."""


@dataclass(frozen=True)
class Lowering:
    """A graph whose linear layers are ready to be quantized, and how that is to be done."""

    model: onnx.ModelProto
    linears: tuple[Linear, ...]
    candidates: tuple[Linear, ...]
    """Those that may be quantized."""
    precision: str
    options: PrecisionOptions
    activations: Mapping[str, Activation]
    """By the names of the linear layers' inputs; empty without calibration data."""

    @classmethod
    def of(cls, path: Path, precision: str, options: PrecisionOptions, inputs: Sequence[TensorSpec]) -> Lowering:
        """Prepare the graph in a file, and measure what goes into its linear layers.

        Raises:
            CheckpointError: if the calibration data does not fit the graph, or a pattern excludes nothing.
        """
        model = onnx.load(path)
        if precision == FP16:
            return cls(model, (), (), precision, options, {})
        linears = prepare_linears(model)
        candidates = select(linears, options.exclude)
        data = options.calibration
        feeds = [complete(feed, inputs) for feed in data.feeds] if data is not None else []
        activations = measure_activations(model, linears, feeds, path.parent)
        return cls(model, linears, candidates, precision, options, activations)

    def make(self, chosen: Sequence[Linear], *, finished: bool = True, last: bool = False) -> onnx.ModelProto:
        """Return the graph with these linear layers quantized.

        Args:
            chosen: those layers.
            finished: with all that belongs to its target.
            last: no other graph will be made, so that this one may be made of the prepared graph itself: a copy of a
                large one would need its memory once more.
        """
        options, model, made_by = self.options, self.model, _header(self.model)
        if not last:
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
        if self.precision == FP16:
            return _clean(to_half(model, norms=options.fp16_norms, io=options.fp16_io), made_by)
        if finished and not (self.precision == INT8_STATIC and options.target == TENSORRT):
            quantize_embeddings(model)
        if self.precision == INT8:
            model = to_dynamic(model, chosen)
        elif self.precision == INT8_STATIC:
            to_static(model, chosen, {name: activation.largest for name, activation in self.activations.items()})
            if options.target == X86:
                to_unsigned(model)
            if finished and options.rest == FP16:
                model = to_half(model)
        else:
            model = to_int4(model, chosen, options.block_size)
        return _clean(model, made_by)

    def macs(self, linear: Linear) -> float:
        """Return the multiply-adds of a linear layer for one example of the calibration data."""
        return linear.shape[0] * linear.shape[1] * self.activations[linear.input].rows


def measure_activations(
    model: onnx.ModelProto, linears: Sequence[Linear], feeds: Sequence[Feed], folder: Path
) -> dict[str, Activation]:
    """Run a graph on calibration data and return what goes into its linear layers."""
    names = sorted({linear.input for linear in linears})
    if not feeds or not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    path = folder / ".activations.onnx"
    try:
        save_model(probe, path)
        session = open_graph(path)
    finally:
        for file in folder.glob(f"{path.name}*"):
            file.unlink()
    largest, vectors, examples = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), 0
    for feed in feeds:
        examples += len(next(iter(feed.values())))
        for name, array in zip(names, session.run(names, feed), strict=True):
            largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
            vectors[name] += array.size // array.shape[-1]
    return {name: Activation(largest[name], vectors[name] / examples) for name in names}


def _header(model: onnx.ModelProto) -> tuple[int, str, str]:
    return model.ir_version, model.producer_name, model.producer_version


def _clean(model: onnx.ModelProto, made_by: tuple[int, str, str]) -> onnx.ModelProto:
    """Leave only what the graph needs of what tools have noted in it."""
    model.ir_version, model.producer_name, model.producer_version = made_by
    del model.metadata_props[:]
    del model.graph.value_info[:]
    used = {node.domain for node in model.graph.node}
    versions = {opset.domain: opset.version for opset in model.opset_import if opset.domain in {"", *used}}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return model
