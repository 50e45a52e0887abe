"""Verifies a bundle: its files against their hashes, then its outputs against the parity samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .backend import ONNXRUNTIME, TENSORRT
from .compare import compare
from .errors import VerificationError
from .manifest import check_files, read_manifest
from .members import Session
from .samples import read_samples
from .session import Bundle


@dataclass(frozen=True)
class VerifyReport:
    """What was verified, and the largest difference that was seen."""

    bundle: str
    files: int
    bytes: int
    samples: int
    precision: str
    max_abs_diff: float
    tolerance: float
    subnets: dict[str, float] = field(default_factory=dict)
    """The largest difference of each subnet, where there are several."""
    backend: str = ONNXRUNTIME
    not_built: tuple[str, ...] = ()
    """Subnets without an engine for this device, of which the files alone were verified."""


def verify(folder: Path, *, threads: int | None = None, backend: str | None = None) -> VerifyReport:
    """Verify every file of a bundle and run every parity sample.

    Raises:
        BundleError: if the folder is not a bundle that this runtime can load.
        VerificationError: if a file, or an output, is not what the manifest says.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    session = Session.open(folder, threads=threads, backend=backend)
    found = {name: compare_samples(session.bundle(name)) for name in session.names}
    parity = manifest.parity
    return VerifyReport(
        bundle=str(folder),
        files=len(manifest.files),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        samples=sum(samples for samples, _ in found.values()),
        precision=parity.precision,
        max_abs_diff=max(difference for _, difference in found.values()),
        tolerance=max([parity.tolerance, *(member.parity.tolerance for member in manifest.members)]),
        backend=session.backend.name,
        subnets={name: difference for name, (_, difference) in found.items() if name is not None},
        not_built=tuple(member.name for member in manifest.members if member.name not in found),
    )


def compare_samples(bundle: Bundle, *, runs: int = 1) -> tuple[int, float]:
    """Run the parity samples of one subnet; return how many there are, and the largest difference.

    With several runs, each is compared.

    Raises:
        VerificationError: if an output is not what the manifest says.
    """
    parity, worst = bundle.manifest.parity, 0.0
    samples = read_samples(bundle.folder / parity.samples)
    what = "engine of" if bundle.backend == TENSORRT else "graph"
    for sample in [sample for sample in samples for _ in range(runs)]:
        sizes = bundle.sizes(sample.inputs)
        actual = bundle.run(sample.inputs)
        for spec in bundle.manifest.outputs:
            if spec.name not in sample.outputs:
                raise VerificationError(f"a parity sample of '{bundle.folder}' has no expected '{spec.name}'.")
            mask = sample.inputs.get("attention_mask")
            difference = compare(spec, sample.outputs[spec.name], actual[spec.name], mask, sizes)
            if failure := difference.failure(parity.tolerance, parity.argmax_tie):
                raise VerificationError(
                    f"the {what} '{bundle.manifest.graph}' in '{bundle.folder}' does not reproduce its parity samples: "
                    f"{failure}."
                )
            worst = max(worst, difference.max_abs_diff)
    return len(samples), worst
