"""Exports a model as an ONNX bundle that is proven equal to it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from elastic.errors import CheckpointError
from elastic.folder import new_folder
from elastic.nested import evaluating

from .embedder import Embedder, Exportable, body_of
from .graph import GRAPH_NAME, IR_VERSION, OPSET, WEIGHTS_NAME, output_specs, trace, with_dtypes, write_graph
from .inputs import ModelInputs, cast_inputs, describe_inputs
from .manifest import tool_versions, write_manifest
from .parity import ParityResult, check_parity, reference_samples, samples_to_keep
from .precision.apply import apply_precision
from .precision.mix import Progress, QuantizationReport
from .precision.options import FP32, PrecisionOptions
from .precision.similarity import Similarity
from .profiles import ProfiledInputs
from .runtime.backend import TENSORRT
from .runtime.engine import FOLDER as ENGINES_NAME
from .runtime.manifest import MANIFEST_NAME, Manifest
from .runtime.samples import Sample, write_samples
from .tensorrt import SCRIPT_NAME, TensorRTTarget, write_script

SAMPLES_NAME = "samples.npz"
RUNTIME_NAME = "runtime"
OWN_FILES = (GRAPH_NAME, WEIGHTS_NAME, SAMPLES_NAME, SCRIPT_NAME, ENGINES_NAME)


@dataclass(frozen=True)
class ExportReport:
    """Where a bundle is, and how far its graph is from the model."""

    bundle_dir: Path
    bytes: int
    """Size of all files of the bundle except the manifest."""
    max_abs_diff: float
    """The largest difference to PyTorch that was seen."""
    tolerance: float
    manifest: Manifest
    similarity: Similarity | None = None
    """Of the outputs of a graph of another precision than float32 to the model's."""
    quantization: QuantizationReport | None = None
    """What a graph of another precision than float32 costs in quality, and where."""


def export_onnx(
    model: Exportable,
    bundle_dir: Path,
    *,
    precision: str = FP32,
    precision_options: PrecisionOptions | None = None,
    progress: Progress | None = None,
    target: TensorRTTarget | None = None,
    subnet: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    quality: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
) -> ExportReport:
    """Export a model as a bundle: a graph of standard operators, a manifest, parity samples, and the runtime.

    Batch (and for texts sequence) stay free, all other sizes are constants. The graph has been run on
    ONNX Runtime and agrees with PyTorch at several sizes; otherwise nothing is written. The model
    comes back in the mode, and with the attention implementation, that it had.

    Decoders take and return a key-value cache: one graph runs a prompt, and then one token after
    another, with one copy of the weights. Where layers have different heads, so have their caches,
    and layers without attention have none. Embedders return ``sentence_embedding``.

    Args:
        model: a model with float32 weights, stock or extracted from a universal model; or an embedder with one inside.
        bundle_dir: a folder that is not there yet.
        precision: ``fp32``, ``fp16``, ``int8`` (activations quantized as they come), ``int8-static`` (by calibration),
            or ``int4`` (weights alone).
        precision_options: what is asked of that precision, and the calibration data.
        progress: told how many linear layers, of how many, have been measured, where each of them is.
        target: TensorRT, and the sizes that engines are built for; by default the bundle is for ONNX Runtime.
        subnet: the choice that the model was extracted with, for the manifest.
        cost: what was predicted or measured of its cost, for the manifest.
        quality: what was measured of its quality, for the manifest.
        preprocess: how inputs are prepared, for the manifest.
        extra_files: files to carry along, such as a tokenizer.

    Raises:
        CheckpointError: if the model is universal, is of a kind that has no graph, or an extra file is missing.
        OutputExistsError: if ``bundle_dir`` is there already.
        CheckError: if the graph does not compute what the model computes (says by how much).
    """
    options = precision_options or PrecisionOptions()
    options.check(precision)
    check_model(model)
    check_extra_files(extra_files)
    traced = describe_inputs(model)
    inputs: ModelInputs = target.at_profiles(traced) if target else traced
    with new_folder(Path(bundle_dir)) as folder, evaluating(model):
        samples = reference_samples(model, inputs)
        graph = trace(model, traced, list(samples[0].outputs))
        outputs = output_specs(graph)
        path = write_graph(graph, folder)
        parity = check_parity(path, inputs, outputs, samples, FP32)
        specs, quantization = inputs.specs, None
        if precision != FP32:
            # Calibration data comes in any size, so sizes are fixed after it.
            quantization = apply_precision(path, precision, options, traced.specs, outputs, progress)
            specs, outputs = (with_dtypes(part, path) for part in (specs, outputs))
            samples = tuple(Sample(cast_inputs(sample.inputs, specs), sample.outputs) for sample in samples)
        if target and isinstance(inputs, ProfiledInputs):
            target.finish(path, inputs)
            write_script(folder, {path.name: inputs.specs}, inputs.profiles)
            outputs = inputs.fix(outputs)
            preprocess = {**(preprocess or {}), "pad_id": getattr(traced, "pad_id", 0)}
        if precision != FP32 or target:
            parity = check_parity(path, inputs, outputs, samples, precision)
        write_samples(folder / SAMPLES_NAME, samples_to_keep(samples))
        copy_files(extra_files, folder)
        manifest = Manifest(
            kind=TENSORRT if target else "onnx",
            graph=GRAPH_NAME,
            model_type=model.config.model_type,
            architecture=type(body_of(model)).__name__,
            opset=OPSET,
            ir_version=IR_VERSION,
            inputs=specs,
            outputs=outputs,
            max_sizes=inputs.max_sizes,
            parity=parity.describe(precision, SAMPLES_NAME),
            tools=tool_versions(),
            subnet=subnet,
            cost=cost,
            quality=_with_costs(quality, parity, quantization),
            preprocess=preprocess,
            profiles=inputs.profiles if isinstance(inputs, ProfiledInputs) else (),
        )
        manifest = write_manifest(folder, manifest)
    return ExportReport(
        bundle_dir=Path(bundle_dir),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        max_abs_diff=parity.max_abs_diff,
        tolerance=parity.tolerance.max_abs_diff,
        manifest=manifest,
        similarity=parity.similarity,
        quantization=quantization,
    )


def _with_costs(
    quality: dict[str, Any] | None, parity: ParityResult, quantization: QuantizationReport | None
) -> dict[str, Any] | None:
    """Add what a precision costs to what was measured before it."""
    if parity.similarity is None or quantization is None:
        return quality
    costs = {"cosine_to_fp32": asdict(parity.similarity), "quantization": quantization.to_dict()}
    return {**(quality or {}), **costs}


def check_model(model: Exportable) -> None:
    """Check that a model is one that can become a graph.

    Raises:
        CheckpointError: if it is of another library, universal, or not of float32.
    """
    if not isinstance(model, (PreTrainedModel, Embedder)):
        raise CheckpointError(f"a {type(model).__name__} cannot be exported; give the transformers model inside it.")
    if hasattr(body_of(model), "_elastic"):
        raise CheckpointError(
            f"this {type(body_of(model)).__name__} is a universal model, which holds many subnets; extract one of them "
            "first (`elastic extract`), and export that."
        )
    check_weights(model)


def check_weights(model: Exportable) -> None:
    """Check that all weights are float32.

    Raises:
        CheckpointError: naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise CheckpointError(
                f"'{name}' is {parameter.dtype}, and a graph is made from float32 weights; "
                "load the model with dtype=torch.float32."
            )


def check_extra_files(files: Sequence[Path], own: Sequence[str] = OWN_FILES) -> None:
    """Check that files can go into a bundle beside its ``own``.

    Raises:
        CheckpointError: if one is missing, or has the name of another file of the bundle.
    """
    taken = {*own, RUNTIME_NAME, MANIFEST_NAME}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"there is no file '{file}' to put into the bundle.")
        if file.name in taken:
            raise CheckpointError(f"'{file}' cannot go into the bundle, which has another file '{file.name}'.")
        taken.add(file.name)


def copy_files(extra_files: Sequence[Path], bundle_dir: Path) -> None:
    """Copy the runtime, and the files that come along, into a bundle."""
    runtime = bundle_dir / RUNTIME_NAME
    runtime.mkdir()
    for source in sorted((Path(__file__).parent / "runtime").glob("*.py")):
        shutil.copyfile(source, runtime / source.name)
    for file in extra_files:
        shutil.copyfile(file, bundle_dir / file.name)
