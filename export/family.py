"""Exports subnets of a universal model as a family: one small graph each, over one file of weights."""

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
from .graph import IR_VERSION, OPSET, check_file, output_specs, trace
from .inputs import ModelInputs, describe_inputs
from .layout import row_blocks, store_by_rows
from .manifest import tool_versions, write_manifest
from .onnx import check_extra_files, check_model, copy_files
from .parity import MAX_SAMPLE_BYTES, check_parity, reference_samples, samples_to_keep
from .precision.options import FP32
from .runtime.manifest import FAMILY, MEMBER_NAME, Manifest, Member, TensorSpec
from .runtime.samples import Sample, write_samples
from .weights import WEIGHTS_FILE, share_weights


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
        wrap: makes what is exported of an extracted model and its subnet: an embedder, for example.
        preprocess: how inputs are prepared, for the manifest.
        extra_files: files to carry along, such as a tokenizer.

    Raises:
        CheckpointError: if no member is given, names collide, or a model is of a kind that has no graph.
        OutputExistsError: if ``bundle_dir`` is there already.
        CheckError: if a graph does not compute what its model computes (says which, and by how much).
    """
    ordered = sorted(members, key=lambda member: -(member.cost or {}).get("flops", 0))
    check_names([member.name for member in ordered])
    check_extra_files(extra_files, [WEIGHTS_FILE, *(f"{m.name}{end}" for m in ordered for end in (".onnx", ".npz"))])
    bundle_dir = Path(bundle_dir)
    with new_folder(bundle_dir) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as work:
        traced = [_trace(model, member, wrap, Path(work)) for member in ordered]
        shared = share_weights([one.graph for one in traced], folder)
        limit = MAX_SAMPLE_BYTES // len(traced)
        entries = [_write(one, folder, limit) for one in traced]
        copy_files(extra_files, folder)
        largest, first = traced[0], entries[0]
        manifest = Manifest(
            kind=FAMILY,
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
) -> _Traced:
    """Trace one subnet; its weights wait in a file, so that those of all members are never in memory together."""
    small = extract(model, member.subnet).eval()
    exportable = wrap(small, member.subnet)
    check_model(exportable)
    inputs = describe_inputs(exportable)
    samples = reference_samples(exportable, inputs)
    blocks = row_blocks(get_elastic(model).family, model.config, small, member.subnet)
    graph = trace(exportable, inputs, list(samples[0].outputs), rule=store_by_rows(blocks))
    path = work / f"{member.name}.onnx"
    ir.save(graph, path, external_data=f"{member.name}.data")
    return _Traced(
        member=member,
        graph=ir.load(path),
        inputs=inputs,
        outputs=output_specs(graph),
        samples=samples,
        model_type=model.config.model_type,
        architecture=type(model).__name__,
    )


def _write(traced: _Traced, folder: Path, limit: int) -> Member:
    """Write the graph of one member over the shared weights, and compare it with the model."""
    name = traced.member.name
    path, samples = folder / f"{name}.onnx", f"{name}.npz"
    ir.save(traced.graph, path)
    check_file(path)
    parity = check_parity(path, traced.inputs, traced.outputs, traced.samples, FP32)
    write_samples(folder / samples, samples_to_keep(traced.samples, limit))
    return Member(
        name=name,
        graph=path.name,
        inputs=traced.inputs.specs,
        outputs=traced.outputs,
        parity=parity.describe(FP32, samples),
        subnet=traced.member.subnet.to_dict(),
        cost=traced.member.cost,
        quality=traced.member.quality,
    )
