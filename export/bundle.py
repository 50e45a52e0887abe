"""What a bundle can do, for code that has Elastic: the runtime of this version, with Elastic's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from elastic.errors import CheckError, CheckpointError

from .runtime import bench, manifest, run, verify
from .runtime.bench import BenchReport, ComparisonReport
from .runtime.errors import BundleError, VerificationError
from .runtime.manifest import Manifest
from .runtime.run import RunReport
from .runtime.verify import VerifyReport


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


def verify_bundle(path: str | os.PathLike[str], *, threads: int | None = None) -> VerifyReport:
    """Verify every file of a bundle by its hash, then the graph on every parity sample.

    Raises:
        CheckpointError: if the folder is not a bundle that can be loaded.
        CheckError: if a file or an output is not what the manifest says.
    """
    with _elastic_errors():
        return verify.verify(Path(path), threads=threads)


def bench_bundle(
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    sequence: int | None = None,
    past: int = 0,
    threads: int = 1,
    warmup: int = 5,
    rounds: int = 50,
) -> BenchReport:
    """Measure the latency of a bundle on this machine.

    Raises:
        CheckpointError: if the folder is not a bundle that can be run at these sizes.
        CheckError: if its graph is not the exported one.
    """
    with _elastic_errors():
        return bench.bench(
            Path(path), batch=batch, sequence=sequence, past=past, threads=threads, warmup=warmup, rounds=rounds
        )


def compare_latency(
    paths: Sequence[str | os.PathLike[str]],
    *,
    batch: int = 1,
    sequence: int | None = None,
    past: int = 0,
    threads: int = 1,
    warmup: int = 5,
    rounds: int = 50,
) -> ComparisonReport:
    """Measure bundles that take turns in one process; ratios are to the first of them.

    Raises:
        CheckpointError: if a folder is not a bundle that can be run at these sizes.
        CheckError: if a graph is not the exported one.
    """
    with _elastic_errors():
        return bench.compare_latency(
            [Path(path) for path in paths],
            batch=batch,
            sequence=sequence,
            past=past,
            threads=threads,
            warmup=warmup,
            rounds=rounds,
        )


def run_bundle(
    path: str | os.PathLike[str],
    input_file: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    *,
    threads: int | None = None,
    max_new_tokens: int | None = None,
) -> RunReport:
    """Run a bundle on the arrays of a ``.npz`` or ``.npy`` file, or the texts of a ``.txt``, and write an ``.npz``.

    With ``max_new_tokens``, a decoder continues them.

    Raises:
        CheckpointError: if the inputs do not fit, or the output file is there already.
        CheckError: if its graph is not the exported one.
    """
    with _elastic_errors():
        return run.run(Path(path), Path(input_file), Path(output_file), threads=threads, max_new_tokens=max_new_tokens)
