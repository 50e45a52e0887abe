"""Verifies a bundle: its files against their hashes, then its outputs against the parity samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .compare import Difference, compare
from .errors import VerificationError
from .manifest import check_files, read_manifest
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


def verify(folder: Path, *, threads: int | None = None) -> VerifyReport:
    """Verify every file of a bundle and run every parity sample.

    Raises:
        BundleError: if the folder is not a bundle that this runtime can load.
        VerificationError: if a file, or an output, is not what the manifest says.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    bundle = Bundle.open(folder, threads=threads)
    samples = read_samples(folder / manifest.parity.samples)
    differences: list[Difference] = []
    for sample in samples:
        sizes = bundle.sizes(sample.inputs)
        actual = bundle.run(sample.inputs)
        for spec in manifest.outputs:
            if spec.name not in sample.outputs:
                raise VerificationError(f"a parity sample of '{folder}' has no expected '{spec.name}'.")
            mask = sample.inputs.get("attention_mask")
            differences.append(compare(spec, sample.outputs[spec.name], actual[spec.name], mask, sizes))
    parity = manifest.parity
    for difference in differences:
        if failure := difference.failure(parity.tolerance, parity.argmax_tie):
            raise VerificationError(f"the graph in '{folder}' does not reproduce its parity samples: {failure}.")
    return VerifyReport(
        bundle=str(folder),
        files=len(manifest.files),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        samples=len(samples),
        precision=parity.precision,
        max_abs_diff=max(difference.max_abs_diff for difference in differences),
        tolerance=parity.tolerance,
    )
