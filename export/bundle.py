"""What a bundle can do, for code that has Elastic: the runtime of this version, with Elastic's errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from elastic.errors import CheckError, CheckpointError

from .runtime import bench, build, manifest, profile, run, verify
from .runtime.bench import BenchReport, ComparisonReport, Timing
from .runtime.build import BuildReport
from .runtime.deadline import read_milliseconds
from .runtime.errors import BundleError, VerificationError
from .runtime.manifest import Manifest
from .runtime.members import Session
from .runtime.profile import ProfileReport
from .runtime.run import RunReport
from .runtime.verify import VerifyReport

if TYPE_CHECKING:
    from typing import Unpack


@contextmanager
def _elastic_errors() -> Iterator[None]:
    try:
        yield
    except VerificationError as error:
        raise CheckError(str(error)) from None
    except BundleError as error:
        raise CheckpointError(str(error)) from None


def read_bundle(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a bundle, checked for sense but not against the files.

    Raises:
        CheckpointError: if the folder is not a bundle that this version reads.
    """
    with _elastic_errors():
        return manifest.read_manifest(Path(path))


def verify_bundle(
    path: str | os.PathLike[str], *, threads: int | None = None, backend: str | None = None
) -> VerifyReport:
    """Verify every file of a bundle by its hash, then the graph on every parity sample.

    Raises:
        CheckpointError: if the folder is not a bundle that can be loaded.
        CheckError: if a file or an output is not what the manifest says.
    """
    with _elastic_errors():
        return verify.verify(Path(path), threads=threads, backend=backend)


def bench_bundle(
    path: str | os.PathLike[str],
    *,
    subnet: str | None = None,
    batch: int = 1,
    sequence: int | None = None,
    **timing: Unpack[Timing],
) -> BenchReport:
    """Measure the latency of a bundle on this machine: of ``subnet`` (by default the largest) if it has several.

    Raises:
        CheckpointError: if the folder is not a bundle that can be run at these sizes.
        CheckError: if its graph is not the exported one.
    """
    with _elastic_errors():
        return bench.bench(Path(path), subnet=subnet, batch=batch, sequence=sequence, **timing)


def bench_subnets(
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    sequence: int | None = None,
    **timing: Unpack[Timing],
) -> ComparisonReport:
    """Measure all subnets of a bundle, which take turns in one process; ratios are to the largest.

    Raises:
        CheckpointError: if the folder is not a bundle that can be run at these sizes.
        CheckError: if a graph is not the exported one.
    """
    with _elastic_errors():
        return bench.compare_subnets(Path(path), batch=batch, sequence=sequence, **timing)


def compare_latency(
    paths: Sequence[str | os.PathLike[str]],
    *,
    subnet: str | None = None,
    batch: int = 1,
    sequence: int | None = None,
    **timing: Unpack[Timing],
) -> ComparisonReport:
    """Measure bundles that take turns in one process; ratios are to the first of them.

    ``subnet`` is that of the first, if it has several; of the others, the largest runs.

    Raises:
        CheckpointError: if a folder is not a bundle that can be run at these sizes.
        CheckError: if a graph is not the exported one.
    """
    with _elastic_errors():
        return bench.compare_latency(
            [Path(path) for path in paths], subnet=subnet, batch=batch, sequence=sequence, **timing
        )


def profile_bundles(
    paths: Sequence[str | os.PathLike[str]],
    output_file: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1,),
    sequences: Sequence[int] | None = None,
    **timing: Unpack[Timing],
) -> ProfileReport:
    """Measure every subnet of some bundles of one model on this machine, and write its latency table.

    Raises:
        CheckpointError: if a folder is not a bundle that can be run at these sizes, or the file is there already.
        CheckError: if a graph is not the exported one.
    """
    with _elastic_errors():
        return profile.profile(
            [Path(path) for path in paths], Path(output_file), batches=batches, sequences=sequences, **timing
        )


def run_bundle(
    path: str | os.PathLike[str],
    input_file: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    *,
    threads: int | None = None,
    max_new_tokens: int | None = None,
    subnet: str | None = None,
    deadline: str | float | None = None,
    backend: str | None = None,
) -> RunReport:
    """Run a bundle on the arrays of a ``.npz`` or ``.npy`` file, or the texts of a ``.txt``, and write an ``.npz``.

    With ``max_new_tokens``, a decoder continues them. A bundle with several subnets runs ``subnet``, the best one that
    meets the ``deadline`` (``"8ms"``, or a number of milliseconds), or the largest.

    Raises:
        CheckpointError: if the inputs do not fit, or the output file is there already.
        CheckError: if its graph is not the exported one.
    """
    with _elastic_errors():
        return run.run(
            Path(path),
            Path(input_file),
            Path(output_file),
            threads=threads,
            max_new_tokens=max_new_tokens,
            subnet=subnet,
            deadline_ms=None if deadline is None else read_milliseconds(str(deadline)),
            backend=backend,
        )


def open_session(path: str | os.PathLike[str], *, threads: int | None = None, backend: str | None = None) -> Session:
    """Open a bundle to run it from Python: its subnets by name, or by deadline.

    Raises:
        CheckpointError: if the folder is not a bundle that can be run.
        CheckError: if its weights are not the exported ones.
    """
    with _elastic_errors():
        return Session.open(Path(path), threads=threads, backend=backend)


def build_bundle(
    path: str | os.PathLike[str],
    *,
    workspace: str | None = None,
    stripped: bool = False,
    force: bool = False,
    subnets: Sequence[str] = (),
    say: Callable[[str], object] = lambda text: None,
) -> BuildReport:
    """Build TensorRT engines on this device, of all subnets or of some, and verify each on the parity samples.

    Raises:
        CheckpointError: if the bundle is not for TensorRT, or TensorRT cannot build it here (says why).
        CheckError: if an engine does not reproduce the parity samples, or a file is not the exported one.
    """
    with _elastic_errors():
        size = build.read_size(workspace) if workspace else None
        return build.build(Path(path), workspace=size, stripped=stripped, force=force, subnets=subnets, say=say)
