"""Exports a universal model as one elastic graph, whose subnets are proven equal to the model's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from elastic.errors import CheckpointError, SpaceError
from elastic.extraction import extract
from elastic.folder import new_folder
from elastic.nested import active, evaluating, get_elastic, is_elastic
from elastic.nested import routed as run_routed
from elastic.space import Subnet

from .decoder import DecoderInputs
from .elastic_graph import Controls, make_elastic_graph
from .embedder import Embedder, Exportable, body_of
from .family import NamedSubnet
from .graph import GRAPH_NAME, IR_VERSION, OPSET, output_specs, trace, write_graph
from .inputs import ModelInputs, describe_inputs
from .manifest import tool_versions, write_manifest
from .onnx import check_extra_files, check_weights, copy_files
from .parity import FP32_TOLERANCE, ParityResult, compare_samples, reference_samples, samples_to_keep
from .precision.options import FP32
from .routed_graph import ROUTER_THRESHOLDS, Routers
from .runtime.manifest import ELASTIC, PAST, PRESENT, Manifest, Member, TensorSpec
from .runtime.ort import open_graph
from .runtime.samples import Sample, write_samples
from .sublayers import marked

NUM_RANDOM = 8
"""Settings of the controls that are compared beside the members, one size each."""


@dataclass(frozen=True)
class ElasticReport:
    """Where an elastic bundle is, what it holds, and how far its graph is from the model."""

    bundle_dir: Path
    bytes: int
    max_abs_diff: float
    """The largest difference to PyTorch that was seen, over all members and random settings."""
    tolerance: float
    num_random: int
    """Settings that were drawn at random and compared, beside the members."""
    manifest: Manifest
    left_out: dict[str, str] = field(default_factory=dict)
    """Named subnets that the graph does not hold, with why."""


def export_elastic(
    model: Exportable,
    subnets: Sequence[NamedSubnet],
    bundle_dir: Path,
    *,
    routed: bool = False,
    preprocess: dict[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
    seed: int = 0,
) -> ElasticReport:
    """Export a universal model as a bundle of one graph that runs any subnet of its FFN widths and skipped sub-layers.

    The inputs ``ffn_blocks`` and ``attention_on`` choose the subnet at run time; weights are stored once. Heads, hidden
    size and embeddings are those of the largest subnet. Every member, and random settings of the controls, agree on
    ONNX Runtime with the universal model that runs that subnet; otherwise nothing is written.

    Args:
        model: a universal model with float32 weights, or an embedder with one inside.
        subnets: what is to have a name in the bundle; those that the graph does not hold are left out.
        bundle_dir: a folder that is not there yet.
        routed: let the model's trained routers decide in the graph: each subnet has a second member, whose name ends
            with ``-routed``, with the thresholds that were trained for. Thresholds of 0 compute everything.
        preprocess: how inputs are prepared, for the manifest.
        extra_files: files to carry along, such as a tokenizer.
        seed: of the random settings.

    Raises:
        CheckpointError: if the model is not universal, or of a kind that has no elastic graph.
        SpaceError: if the graph would hold one subnet alone, or none that has a name.
        OutputExistsError: if ``bundle_dir`` is there already.
        CheckError: if a subnet of the graph does not compute what the model computes (says which, and by how much).
    """
    body = body_of(model)
    if not is_elastic(body):
        raise CheckpointError(
            f"this {type(body).__name__} is no universal model, so its graph has nothing to choose; export it with "
            "--to onnx."
        )
    check_weights(model)
    check_extra_files(extra_files)
    controls = Controls.of(get_elastic(body).resolved)
    routers = Routers.of(body) if routed else None
    if not controls.specs and routers is None:
        raise SpaceError(
            "an elastic graph has FFN widths and skipped sub-layers to choose, and this space has one FFN width and "
            "skips nothing; export a family of its subnets (--to family)."
        )
    settings, left_out = _settings(controls, subnets)
    specs = (*controls.specs, *([routers.spec] if routers else []))
    with new_folder(Path(bundle_dir)) as folder, evaluating(model):
        whole = _whole(model, controls).eval()
        inputs = describe_inputs(whole)
        if routers is not None and isinstance(inputs, DecoderInputs):
            raise CheckpointError(
                "routers of a decoder decide when the prompt is read, and a graph with a cache does not keep what they "
                "decided; export without routers."
            )
        names = list(reference_samples(whole, inputs)[0].outputs)
        with marked(body_of(whole)):
            graph = trace(
                whole,
                inputs,
                names,
                controls=specs,
                rule=lambda traced: make_elastic_graph(traced, controls, routers),
            )
        del whole
        path = write_graph(graph, folder, weights_beside=True)
        checker = _Checker(model, inputs, output_specs(graph), controls, routers, open_graph(path))
        members = tuple(member for named in settings for member in checker.members(named, folder))
        drawn = checker.check_random(NUM_RANDOM, seed)
        copy_files(extra_files, folder)
        first = members[0]
        manifest = Manifest(
            kind=ELASTIC,
            graph=GRAPH_NAME,
            model_type=model.config.model_type,
            architecture=type(body).__name__,
            opset=OPSET,
            ir_version=IR_VERSION,
            inputs=inputs.specs,
            outputs=checker.outputs,
            max_sizes=inputs.max_sizes,
            parity=first.parity,
            tools=tool_versions(),
            subnet=first.subnet,
            cost=first.cost,
            quality=first.quality,
            preprocess=preprocess,
            controls=specs,
            members=members,
        )
        manifest = write_manifest(folder, manifest)
    return ElasticReport(
        bundle_dir=Path(bundle_dir),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        max_abs_diff=checker.worst,
        tolerance=FP32_TOLERANCE.max_abs_diff,
        num_random=drawn,
        manifest=manifest,
        left_out=left_out,
    )


def _settings(controls: Controls, subnets: Sequence[NamedSubnet]) -> tuple[list[NamedSubnet], dict[str, str]]:
    """Return the subnets that the graph holds, largest first, and why others are left out.

    Raises:
        SpaceError: if none is left.
    """
    kept, left_out = [], {}
    for named in subnets:
        try:
            controls.values(named.subnet)
            kept.append(named)
        except SpaceError as error:
            left_out[named.name] = str(error)
    if not kept:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in left_out.items())
        raise SpaceError(
            f"no named subnet of this model is one of its elastic graph ({reasons or 'it names none'}); export a "
            "family of them (--to family)."
        )
    return sorted(kept, key=lambda named: (sum(named.subnet.ffn), sum(named.subnet.heads)), reverse=True), left_out


def _whole(model: Exportable, controls: Controls) -> Exportable:
    """Return a stock model of everything that the graph holds."""
    whole = extract(body_of(model), controls.whole)
    return model.around(whole) if isinstance(model, Embedder) else whole


@dataclass
class _Checker:
    """Compares settings of a graph with the universal model, and remembers the largest difference."""

    model: Exportable
    """The universal model."""
    inputs: ModelInputs
    outputs: tuple[TensorSpec, ...]
    controls: Controls
    routers: Routers | None
    session: Any
    worst: float = 0.0

    def members(self, named: NamedSubnet, folder: Path) -> list[Member]:
        """Compare one subnet at every size, computed whole and as routers run it, and write its parity samples.

        Raises:
            CheckError: if an output differs by more than the tolerance.
        """
        made = [self._member(named, None, folder)]
        if self.routers is not None:
            # What was measured of the subnet was measured without routers.
            routed = replace(named, name=f"{named.name}-routed", cost=None, quality=None)
            made.append(self._member(routed, self.routers.routing.threshold, folder))
        return made

    def _member(self, named: NamedSubnet, threshold: float | None, folder: Path) -> Member:
        sizes = tuple(self.inputs.parity_sizes())
        samples = self._expected(named.subnet, threshold, sizes, 0)
        seen = self._compare(self.values(named.subnet, threshold), samples, sizes, f"the subnet '{named.name}'")
        file = f"{named.name}.samples.npz"
        write_samples(folder / file, samples_to_keep(samples))
        return Member(
            name=named.name,
            graph=GRAPH_NAME,
            inputs=self.inputs.specs,
            outputs=self.outputs,
            parity=seen.describe(FP32, file),
            subnet=named.subnet.to_dict(),
            cost=named.cost,
            quality=named.quality,
            controls=self.values(named.subnet, threshold),
        )

    def check_random(self, count: int, seed: int) -> int:
        """Compare so many random settings, each at one of the sizes, and return how many.

        Raises:
            CheckError: if an output differs by more than the tolerance.
        """
        rng, sizes = random.Random(seed), self.inputs.parity_sizes()
        for number in range(count):
            subnet, chosen = self.controls.draw(rng), [sizes[number % len(sizes)]]
            threshold = None if self.routers is None else rng.uniform(0.05, 0.95)
            samples = self._expected(subnet, threshold, chosen, seed + number)
            self._compare(self.values(subnet, threshold), samples, chosen, f"the subnet {subnet.describe()}")
        return count

    def values(self, subnet: Subnet, threshold: float | None) -> dict[str, list[int] | list[float]]:
        """Return the control inputs of a setting; without a threshold, routers let everything through."""
        found: dict[str, list[int] | list[float]] = {**self.controls.values(subnet)}
        if self.routers is not None:
            found[ROUTER_THRESHOLDS] = [threshold or 0.0] * len(self.routers.routing.keys)
        return found

    def _expected(
        self, subnet: Subnet, threshold: float | None, sizes: Sequence[dict[str, int]], seed: int
    ) -> tuple[Sample, ...]:
        body = body_of(self.model)
        with active(body, subnet), nullcontext() if threshold is None else run_routed(body, threshold, dense=False):
            samples = reference_samples(self.model, self.inputs, sizes, seed)
        if isinstance(self.inputs, DecoderInputs):
            for sample in samples:
                _lengthen_unused(sample, self.inputs, subnet)
        return samples

    def _compare(
        self,
        values: dict[str, list[int] | list[float]],
        samples: Sequence[Sample],
        sizes: Sequence[dict[str, int]],
        what: str,
    ) -> ParityResult:
        specs = (*self.controls.specs, *([self.routers.spec] if self.routers else []))
        given = {spec.name: np.array(values[spec.name], spec.dtype) for spec in specs}
        fed = [Sample({**sample.inputs, **given}, sample.outputs) for sample in samples]
        seen = compare_samples(self.session, self.outputs, fed, sizes, FP32, what)
        self.worst = max(self.worst, seen.max_abs_diff)
        return seen


def _lengthen_unused(sample: Sample, inputs: DecoderInputs, subnet: Subnet) -> None:
    """State what attention that does not run returns of its cache: what it was given, and zeros for new tokens."""
    new = sample.inputs["input_ids"].shape[1]
    for layer in inputs.layers:
        if subnet.heads[layer.index]:
            continue
        for past, present in zip(layer.specs(PAST, "past"), layer.specs(PRESENT, "total"), strict=True):
            sample.outputs[present.name] = np.pad(sample.inputs[past.name], ((0, 0), (0, 0), (0, new), (0, 0)))
