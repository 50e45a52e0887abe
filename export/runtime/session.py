"""Opens the graph of a bundle on ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError, VerificationError
from .manifest import ELASTIC, FAMILY, MAY_BE_ZERO, Manifest, Member, check_files, read_manifest

Array = np.ndarray[Any, Any]

# On CPUs the fused kernel takes several times as long as Add and LayerNormalization apart.
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]

RUNNABLE = ("onnx", FAMILY, ELASTIC)


def available_cpus() -> int:
    """Return how many CPUs this process may use; ONNX Runtime by itself would count all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runtime_version() -> str:
    """Return the name and version of what runs graphs here."""
    try:
        import onnxruntime
    except ImportError:
        return "none"
    return f"onnxruntime {onnxruntime.__version__}"


def open_graph(path: Path, *, threads: int | None = None, spinning: bool = True) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Threads that wait for work spin for a while before they sleep: the fastest where the CPUs are free. Without
    ``spinning`` they sleep at once and leave the CPUs to others.

    Raises:
        BundleError: if ONNX Runtime is not installed, or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BundleError("onnxruntime is not installed; install it with `pip install onnxruntime`.") from None
    if threads is not None and threads < 1:
        raise BundleError(f"the number of threads must be 1 or more, not {threads}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
    except Exception as error:  # ONNX Runtime's own exception types share no base class.
        raise BundleError(f"ONNX Runtime cannot load '{path}': {first_line(error)}") from None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose graph is loaded: a fixed graph, or one member of several."""

    folder: Path
    manifest: Manifest
    """Of the one subnet that runs."""
    session: Any
    controls: dict[str, Array] = field(default_factory=dict)
    """What an elastic graph is given with every call to run this subnet."""

    @classmethod
    def open(
        cls, folder: Path, *, threads: int | None = None, spinning: bool = True, subnet: str | None = None
    ) -> Bundle:
        """Load a bundle after checking that its graph and weights are the exported ones.

        Of a bundle with members, ``subnet`` is loaded, by default the largest; `elastic.export.runtime.members.Session`
        runs all of them.

        Raises:
            BundleError: if the folder is not a bundle that can be loaded, or has no such subnet.
            VerificationError: if the graph or its weights are not what the manifest says.
        """
        manifest = read_manifest(folder)
        member = choose_member(manifest, subnet)
        graph = manifest.graph if member is None else member.graph
        check_files(folder, manifest, [graph, *weights_of(manifest)])
        return cls.of(folder, manifest, member, open_graph(folder / graph, threads=threads, spinning=spinning))

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, member: Member | None, session: Any) -> Bundle:
        """Return a member (or the only graph) of a bundle, whose graph is loaded already.

        Raises:
            VerificationError: if the graph has other inputs or outputs than the manifest says.
        """
        one = manifest if member is None else manifest.of(member)
        for side, specs, found in (
            ("inputs", (*one.inputs, *one.controls), session.get_inputs()),
            ("outputs", one.outputs, session.get_outputs()),
        ):
            if sorted(spec.name for spec in specs) != sorted(tensor.name for tensor in found):
                raise VerificationError(
                    f"the graph in '{folder}' has the {side} {[tensor.name for tensor in found]}, and the manifest "
                    f"says {[spec.name for spec in specs]}."
                )
        values = {} if member is None else member.controls
        controls = {
            spec.name: np.array(values[spec.name], dtype=spec.dtype).reshape([int(size) for size in spec.shape])
            for spec in one.controls
        }
        return cls(folder, one, session, controls)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph on arrays of exactly the types and shapes in the manifest.

        Several threads may do so at once.

        Raises:
            BundleError: if an input does not fit, or ONNX Runtime cannot run them.
        """
        # ONNX Runtime would stretch a mask of another length over the text, and compute something else.
        self.sizes(inputs)
        names = [spec.name for spec in self.manifest.outputs]
        try:
            return dict(zip(names, self.session.run(names, {**inputs, **self.controls}), strict=True))
        except Exception as error:  # see open_graph
            raise BundleError(f"the graph in '{self.folder}' cannot run these inputs: {first_line(error)}") from None

    def sizes(self, inputs: dict[str, Array]) -> dict[str, int]:
        """Return the sizes of the free dimensions, checking every input against the manifest.

        Raises:
            BundleError: if an input is missing, unknown, or has another type or shape.
        """
        specs = {spec.name: spec for spec in self.manifest.inputs}
        if inputs.keys() != specs.keys():
            raise BundleError(f"the bundle takes the inputs {sorted(specs)}, not {sorted(inputs)}.")
        sizes: dict[str, int] = {}
        for name, spec in specs.items():
            array = inputs[name]
            fits = array.dtype == np.dtype(spec.dtype) and array.ndim == len(spec.shape)
            if not fits or not all(
                (size > 0 or dim in MAY_BE_ZERO)
                and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
                for dim, size in zip(spec.shape, array.shape, strict=True)
            ):
                raise BundleError(
                    f"input '{name}' must be {spec.dtype} of shape ({', '.join(map(str, spec.shape))}), not "
                    f"{array.dtype.name} of shape ({', '.join(map(str, array.shape))})."
                )
        self.check_sizes(sizes)
        if "past" in sizes and sizes["total"] != sizes["past"] + sizes["sequence"]:
            raise BundleError(
                f"'attention_mask' has {sizes['total']} columns, and {sizes['past']} cached and {sizes['sequence']} "
                f"new tokens need {sizes['past'] + sizes['sequence']}."
            )
        return sizes

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """Check free dimensions against the limits of the model.

        Raises:
            BundleError: if one is below 1 or above its limit.
        """
        for name, size in sizes.items():
            limit = self.manifest.max_sizes.get(name)
            if size < (name not in MAY_BE_ZERO) or (limit is not None and size > limit):
                bounds = f"between 1 and {limit}" if limit is not None else "1 or more"
                raise BundleError(f"{name} must be {bounds} for this bundle, not {size}.")


def choose_member(manifest: Manifest, subnet: str | None) -> Member | None:
    """Return the member that is asked for, by default the largest; None for a bundle of one fixed graph.

    Raises:
        BundleError: if there is no such member, or this runtime does not run bundles of this kind.
    """
    if manifest.kind not in RUNNABLE:
        raise BundleError(f"bundles of kind '{manifest.kind}' do not run on ONNX Runtime.")
    if subnet is not None:
        return manifest.member(subnet)
    return manifest.members[0] if manifest.members else None


def weights_of(manifest: Manifest) -> list[str]:
    """Return the files of weights beside the graphs; those of another graph would load, and compute nonsense."""
    beside = [name for name in manifest.files if name.startswith(f"{manifest.graph}.")]
    return [*beside, *([manifest.weights] if manifest.weights else [])]


def first_line(error: Exception) -> str:
    """Return the first line of what ONNX Runtime says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
