"""Opens a bundle, and runs its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .backend import ONNXRUNTIME, choose_backend
from .errors import BundleError, VerificationError
from .manifest import MAY_BE_ZERO, Manifest, Member, check_files, read_manifest, weights_of
from .ort import first_line

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose graph is loaded: a fixed graph, or one member of several."""

    folder: Path
    manifest: Manifest
    """Of the one subnet that runs."""
    session: Any
    controls: dict[str, Array] = field(default_factory=dict)
    """What an elastic graph is given with every call to run this subnet."""
    backend: str = ONNXRUNTIME
    """What runs it."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        spinning: bool = True,
        subnet: str | None = None,
        backend: str | None = None,
    ) -> Bundle:
        """Load a bundle after checking that its graph and weights are the exported ones.

        Of a bundle with members, ``subnet`` is loaded, by default the largest; `elastic.export.runtime.members.Session`
        runs all of them. ``backend`` is ``onnxruntime`` or ``tensorrt``, by default TensorRT where engines were built.

        Raises:
            BundleError: if the folder is not a bundle that can be loaded, or has no such subnet.
            VerificationError: if the graph or its weights are not what the manifest says.
        """
        manifest = read_manifest(folder)
        member = choose_member(manifest, subnet)
        one = manifest if member is None else manifest.of(member)
        check_files(folder, manifest, [one.graph, *weights_of(manifest)])
        chosen = choose_backend(folder, manifest, backend, threads=threads, spinning=spinning)
        return cls.of(folder, manifest, member, chosen.open(folder, one), chosen.name)

    @classmethod
    def of(
        cls, folder: Path, manifest: Manifest, member: Member | None, session: Any, backend: str = ONNXRUNTIME
    ) -> Bundle:
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
        return cls(folder, one, session, controls, backend)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph on arrays of exactly the types and shapes in the manifest.

        Several threads may do so at once.

        Raises:
            BundleError: if an input does not fit, or ONNX Runtime cannot run them.
        """
        # ONNX Runtime would stretch a mask of another length over the text, and compute something else.
        self.sizes(inputs)
        return self.compute(inputs)

    def compute(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph on inputs that `sizes` has checked.

        Raises:
            BundleError: if they cannot be run.
        """
        names = [spec.name for spec in self.manifest.outputs]
        try:
            return dict(zip(names, self.session.run(names, {**inputs, **self.controls}), strict=True))
        except BundleError:
            raise
        except Exception as error:  # see open_graph
            raise BundleError(f"the graph in '{self.folder}' cannot run these inputs: {first_line(error)}") from None

    @property
    def batch_limit(self) -> int | None:
        """How many rows the graph takes at most, or None where any number."""
        first = self.manifest.inputs[0].shape[0]
        return first if isinstance(first, int) else self.manifest.max_sizes.get("batch")

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
        BundleError: if there is no such member.
    """
    if subnet is not None:
        return manifest.member(subnet)
    return manifest.members[0] if manifest.members else None


def members_of(manifest: Manifest, subnets: Sequence[str] = ()) -> list[Manifest]:
    """Return the manifests of all members, or of some; of a bundle of one fixed graph, its own.

    Raises:
        BundleError: if there is no such member.
    """
    if subnets:
        return [manifest.of(manifest.member(name)) for name in dict.fromkeys(subnets)]
    return [manifest.of(member) for member in manifest.members] or [manifest]
