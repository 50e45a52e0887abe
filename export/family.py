"""Exports subnets of a universal model as a family: one small graph each, over one file of weights.

So that TensorRT reads it, an engine from each graph: its parser takes external data whose ``location`` is a file in the
graph's folder, at any ``offset``, if ``length`` is that of the tensor (``WeightsContext.cpp`` of onnx-tensorrt), and
refits a stripped engine by the names of initializers, from the same file (``ModelRefitter.cpp``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxscript import ir
from transformers import PreTrainedModel

from elastic.errors import CheckpointError
from elastic.extraction import extract
from elastic.folder import new_folder
from elastic.nested import get_elastic
from elastic.space import Subnet

from .embedder import Exportable
from .graph import IR_VERSION, OPSET, check_file, output_specs, trace, write_graph
from .inputs import ModelInputs, describe_inputs
from .layout import row_blocks, store_by_rows
from .manifest import tool_versions, write_manifest
from .onnx import check_extra_files, check_model, copy_files
from .parity import MAX_SAMPLE_BYTES, check_parity, reference_samples, samples_to_keep
from .precision.apply import apply_precision
from .precision.options import FP16, FP32, PrecisionOptions
from .profiles import ProfiledInputs
from .runtime.backend import TENSORRT
from .runtime.engine import FOLDER as ENGINES
from .runtime.manifest import FAMILY, MEMBER_NAME, Manifest, Member, Profile, TensorSpec
from .runtime.samples import Sample, write_samples
from .tensorrt import SCRIPT_NAME, TensorRTTarget, write_script
from .weights import WEIGHTS_FILE, share_weights

PRECISIONS = (FP32, FP16)
"""Those in which the weights of a smaller subnet begin those of a larger one: int8 has scales of its own."""


@dataclass(frozen=True)
class NamedSubnet:
    """A subnet that becomes a member of a bundle, and what its manifest says of it."""

    name: str
    subnet: Subnet
    cost: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None


@dataclass(frozen=True)
class FamilyReport:
    """Where a family is, how far its graphs are from the models, and what sharing saves."""

    bundle_dir: Path
    bytes: int
    """Size of all files of the bundle except the manifest."""
    weight_bytes: int
    """Of the shared weights."""
    unshared_bytes: int
    """What they would be if each graph had its own."""
    max_abs_diff: float
    """The largest difference to PyTorch that was seen of any member."""
    tolerance: float
    manifest: Manifest


@dataclass(frozen=True)
class _Traced:
    member: NamedSubnet
    graph: ir.Model
    inputs: ModelInputs
    outputs: tuple[TensorSpec, ...]
    samples: tuple[Sample, ...]
    model_type: str
    architecture: str


def export_family(
    model: PreTrainedModel,
    members: Sequence[NamedSubnet],
    bundle_dir: Path,
    *,
    precision: str = FP32,
    target: TensorRTTarget | None = None,
    wrap: Callable[[PreTrainedModel, Subnet], Exportable] = lambda model, subnet: model,
    preprocess: dict[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
) -> FamilyReport:
    """Export subnets of a universal model as one bundle: a graph of standard operators for each over one weights file.

    Each graph has been run on ONNX Runtime over the shared weights, and agrees with its extracted model in
    PyTorch at several sizes; otherwise nothing is written. Narrower FFNs, fewer heads and fewer layers begin like the
    weights of the largest, and cost no more room than a graph; what does not, as in subnets with a hidden size of
    their own, is stored again.

    Args:
        model: a universal model with float32 weights.
        members: the subnets; names begin their files' names.
        bundle_dir: a folder that is not there yet.
        precision: of all members: ``fp32`` or ``fp16``.
        target: TensorRT, and the sizes that the engine of every member is built for; by default the bundle is for ONNX
            Runtime.
        wrap: makes what is exported of an extracted model and its subnet: an embedder, for example.
        preprocess: how inputs are prepared, for the manifest.
        extra_files: files to carry along, such as a tokenizer.

    Raises:
        CheckpointError: if no member is given, names collide, a model is of a kind that has no graph, or the precision
            is one that is not shared.
        OutputExistsError: if ``bundle_dir`` is there already.
        CheckError: if a graph does not compute what its model computes (says which, and by how much).
    """
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"a family is {' or '.join(PRECISIONS)}, not {precision}, whose subnets share no weights; export each on "
            f"its own (`elastic extract`, then --precision {precision})."
        )
    ordered = sorted(members, key=lambda member: -(member.cost or {}).get("flops", 0))
    check_names([member.name for member in ordered])
    files = [f"{member.name}{end}" for member in ordered for end in (".onnx", ".npz")]
    check_extra_files(extra_files, [WEIGHTS_FILE, SCRIPT_NAME, ENGINES, *files])
    bundle_dir = Path(bundle_dir)
    with new_folder(bundle_dir) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as work:
        traced = [_trace(model, member, wrap, Path(work), precision, target) for member in ordered]
        shared = share_weights([one.graph for one in traced], folder)
        limit = MAX_SAMPLE_BYTES // len(traced)
        entries = [_write(one, folder, limit, precision, target) for one in traced]
        copy_files(extra_files, folder)
        largest, first = traced[0], entries[0]
        profiles: tuple[Profile, ...] = ()
        if isinstance(largest.inputs, ProfiledInputs):
            profiles = largest.inputs.profiles
            write_script(folder, {entry.graph: entry.inputs for entry in entries}, profiles)
            preprocess = {**(preprocess or {}), "pad_id": getattr(largest.inputs.base, "pad_id", 0)}
        manifest = Manifest(
            kind=TENSORRT if target else FAMILY,
            graph=first.graph,
            model_type=largest.model_type,
            architecture=largest.architecture,
            opset=OPSET,
            ir_version=IR_VERSION,
            inputs=first.inputs,
            outputs=first.outputs,
            max_sizes=largest.inputs.max_sizes,
            parity=first.parity,
            tools=tool_versions(),
            subnet=first.subnet,
            cost=first.cost,
            quality=first.quality,
            preprocess=preprocess,
            weights=WEIGHTS_FILE,
            members=tuple(entries),
            profiles=profiles,
        )
        manifest = write_manifest(folder, manifest)
    return FamilyReport(
        bundle_dir=bundle_dir,
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        weight_bytes=shared.stored_bytes,
        unshared_bytes=shared.referenced_bytes,
        max_abs_diff=max(entry.parity.max_abs_diff for entry in entries),
        tolerance=max(entry.parity.tolerance for entry in entries),
        manifest=manifest,
    )


def check_names(names: Sequence[str]) -> None:
    """Check what members of a bundle are called: their names begin the names of files.

    Raises:
        CheckpointError: if there is none, one has characters that file names should not have, or two are alike.
    """
    if not names:
        raise CheckpointError("a family needs at least one subnet.")
    folded = [name.casefold() for name in names]
    for name in names:
        if not MEMBER_NAME.fullmatch(name):
            raise CheckpointError(
                f"'{name}' cannot be the name of a subnet's file; use letters, digits, '.', '_', '-'."
            )
        if folded.count(name.casefold()) > 1:
            raise CheckpointError(f"two subnets are called '{name}' (some file systems know no case); rename one.")


def _trace(
    model: PreTrainedModel,
    member: NamedSubnet,
    wrap: Callable[[PreTrainedModel, Subnet], Exportable],
    work: Path,
    precision: str,
    target: TensorRTTarget | None,
) -> _Traced:
    """Trace one subnet; its weights wait in a file, so that those of all members are never in memory together."""
    small = extract(model, member.subnet).eval()
    exportable = wrap(small, member.subnet)
    check_model(exportable)
    described = describe_inputs(exportable)
    inputs: ModelInputs = target.at_profiles(described) if target else described
    samples = reference_samples(exportable, inputs)
    blocks = row_blocks(get_elastic(model).family, model.config, small, member.subnet)
    graph = trace(exportable, described, list(samples[0].outputs), rule=store_by_rows(blocks))
    path = work / f"{member.name}.onnx"
    outputs = output_specs(graph)
    if precision != FP32:
        own = work / member.name
        own.mkdir()
        lowered = write_graph(graph, own)
        apply_precision(lowered, precision, PrecisionOptions(), described.specs, outputs)
        graph = ir.load(lowered)
    ir.save(graph, path, external_data=f"{member.name}.data")
    return _Traced(
        member=member,
        graph=ir.load(path),
        inputs=inputs,
        outputs=outputs,
        samples=samples,
        model_type=model.config.model_type,
        architecture=type(model).__name__,
    )


def _write(traced: _Traced, folder: Path, limit: int, precision: str, target: TensorRTTarget | None) -> Member:
    """Write the graph of one member over the shared weights, and compare it with the model."""
    name, inputs, outputs = traced.member.name, traced.inputs, traced.outputs
    path, samples = folder / f"{name}.onnx", f"{name}.npz"
    ir.save(traced.graph, path)
    check_file(path)
    if target and isinstance(inputs, ProfiledInputs):
        target.finish(path, inputs)
        outputs = inputs.fix(outputs)
    parity = check_parity(path, inputs, outputs, traced.samples, precision)
    write_samples(folder / samples, samples_to_keep(traced.samples, limit))
    return Member(
        name=name,
        graph=path.name,
        inputs=inputs.specs,
        outputs=outputs,
        parity=parity.describe(precision, samples),
        subnet=traced.member.subnet.to_dict(),
        cost=traced.member.cost,
        quality=traced.member.quality,
    )
