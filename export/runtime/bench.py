"""Measures the latency of bundles."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from .backend import ONNXRUNTIME
from .errors import BundleError
from .manifest import check_files
from .members import Session
from .samples import read_samples
from .session import Bundle

DEFAULT_SEQUENCE = 128


class Timing(TypedDict, total=False):
    """What all that measure latencies take; the defaults are those of `bench`."""

    past: int
    """Tokens that a decoder has cached."""
    threads: int
    """Of one operator, on ONNX Runtime."""
    spinning: bool
    """Whether threads wait actively for work."""
    warmup: int
    """Rounds that are not counted."""
    rounds: int
    """Rounds that are counted."""
    backend: str | None
    """``onnxruntime`` or ``tensorrt``; by default TensorRT where engines were built."""


@dataclass(frozen=True)
class BenchReport:
    """Latency of one bundle in milliseconds, with everything that it depends on."""

    bundle: str
    sizes: dict[str, int]
    """The sizes of the free dimensions, such as batch and sequence."""
    threads: int
    warmup: int
    rounds: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float
    subnet: str | None = None
    """Which one of a bundle that has several."""
    backend: str = ONNXRUNTIME


@dataclass(frozen=True)
class ComparisonReport:
    """Latency of several bundles, or subnets of one, that took turns in one process."""

    bundles: tuple[BenchReport, ...]
    ratios: tuple[float, ...]
    """For each bundle, the median over rounds of its time divided by the time of the first bundle."""


def bench(
    folder: Path,
    *,
    subnet: str | None = None,
    batch: int = 1,
    sequence: int | None = None,
    past: int = 0,
    threads: int = 1,
    spinning: bool = True,
    warmup: int = 5,
    rounds: int = 50,
    backend: str | None = None,
) -> BenchReport:
    """Measure the latency of one bundle; of one that has several subnets, that of ``subnet``, by default the largest.

    Raises:
        BundleError: if the bundle cannot be run at these sizes, or has no such subnet.
    """
    bundle = Bundle.open(folder, threads=threads, spinning=spinning, subnet=subnet, backend=backend)
    return _take_turns([(bundle, subnet)], batch, sequence, past, threads, warmup, rounds).bundles[0]


def compare_latency(
    folders: Sequence[Path],
    *,
    subnet: str | None = None,
    batch: int = 1,
    sequence: int | None = None,
    past: int = 0,
    threads: int = 1,
    spinning: bool = True,
    warmup: int = 5,
    rounds: int = 50,
    backend: str | None = None,
) -> ComparisonReport:
    """Measure bundles that take turns, so that what disturbs the machine disturbs all of them alike.

    Each round runs every bundle once, in random order. Without
    ``sequence``, texts have 128 tokens, or as many as the model takes.
    ``past`` is how many tokens a decoder has cached. ``subnet`` is that of the first bundle, if it has several; of the
    others, the largest runs. Without ``spinning``, threads that wait for work sleep.

    Raises:
        BundleError: if a bundle cannot be run at these sizes.
    """
    if not folders:
        raise BundleError("give at least one bundle to measure.")
    names = [subnet, *(None for _ in folders[1:])]
    bundles = [
        (Bundle.open(folder, threads=threads, spinning=spinning, subnet=name, backend=backend), name)
        for folder, name in zip(folders, names, strict=True)
    ]
    return _take_turns(bundles, batch, sequence, past, threads, warmup, rounds)


def compare_subnets(
    folder: Path,
    *,
    batch: int = 1,
    sequence: int | None = None,
    past: int = 0,
    threads: int = 1,
    spinning: bool = True,
    warmup: int = 5,
    rounds: int = 50,
    backend: str | None = None,
) -> ComparisonReport:
    """Measure all subnets of one bundle, which take turns; ratios are to the largest.

    Raises:
        BundleError: if the bundle cannot be run at these sizes.
    """
    session = Session.open(folder, threads=threads, spinning=spinning, backend=backend)
    bundles = [(session.bundle(name), name) for name in session.names]
    return _take_turns(bundles, batch, sequence, past, threads, warmup, rounds)


def _take_turns(
    bundles: Sequence[tuple[Bundle, str | None]],
    batch: int,
    sequence: int | None,
    past: int,
    threads: int,
    warmup: int,
    rounds: int,
) -> ComparisonReport:
    check_rounds(warmup, rounds)
    feeds = [make_inputs(bundle, batch, sequence, past) for bundle, _ in bundles]
    runs = [partial(bundle.run, feed) for (bundle, _), feed in zip(bundles, feeds, strict=True)]
    milliseconds = take_turns(runs, warmup=warmup, rounds=rounds)
    reports = []
    for index, (bundle, name) in enumerate(bundles):
        p10, median, p90, p99 = (float(p) for p in np.percentile(milliseconds[:, index], (10, 50, 90, 99)))
        sizes = bundle.sizes(feeds[index])
        measured = (median, p10, p90, p99, name, bundle.backend)
        reports.append(BenchReport(str(bundle.folder), sizes, threads, warmup, rounds, *measured))
    ratios = np.median(milliseconds / milliseconds[:, :1], axis=0)
    return ComparisonReport(tuple(reports), tuple(float(ratio) for ratio in ratios))


def check_rounds(warmup: int, rounds: int) -> None:
    """Check how often something is to be measured.

    Raises:
        BundleError: if there is no round, or a negative number of rounds.
    """
    if rounds < 1 or warmup < 0:
        raise BundleError(f"rounds must be 1 or more and warm-up 0 or more, not {rounds} and {warmup}.")


def take_turns(runs: Sequence[Callable[[], object]], *, warmup: int, rounds: int) -> np.ndarray[Any, Any]:
    """Call all of ``runs`` once a round, in random order, and return milliseconds ``(rounds, runs)``.

    In an order that only turns around, each runs after the same neighbours; latencies of twenty subnets were then seen
    to be off by several percent.
    """
    milliseconds = np.zeros((rounds, len(runs)))
    turn, rng = list(range(len(runs))), random.Random(0)
    for number in range(-warmup, rounds):
        rng.shuffle(turn)
        for index in turn:
            started = time.perf_counter_ns()
            runs[index]()
            elapsed = (time.perf_counter_ns() - started) / 1e6
            if number >= 0:
                milliseconds[number, index] = elapsed
    return milliseconds


def make_inputs(bundle: Bundle, batch: int, sequence: int | None, past: int) -> dict[str, np.ndarray[Any, Any]]:
    """Repeat a parity sample to the wanted sizes; nothing is padded."""
    free = {dim for spec in bundle.manifest.inputs for dim in spec.shape if isinstance(dim, str)}
    sizes = {"batch": batch}
    only = bundle.manifest.inputs[0].shape[0]
    if only not in ("batch", batch):
        raise BundleError(f"the bundle '{bundle.folder}' takes batch {only} alone, not {batch}.")
    if "sequence" in free:
        limit = bundle.manifest.max_sizes.get("sequence", DEFAULT_SEQUENCE)
        sizes["sequence"] = min(limit, DEFAULT_SEQUENCE) if sequence is None else sequence
    elif sequence is not None:
        raise BundleError(f"the bundle '{bundle.folder}' has no sequence dimension; leave the sequence length out.")
    if "past" in free:
        sizes |= {"past": past, "total": past + sizes["sequence"]}
    elif past:
        raise BundleError(f"the bundle '{bundle.folder}' has no key-value cache; leave the cached tokens out.")
    bundle.check_sizes(sizes)
    check_files(bundle.folder, bundle.manifest, [bundle.manifest.parity.samples])
    sample = read_samples(bundle.folder / bundle.manifest.parity.samples)[0].inputs
    inputs = {}
    for spec in bundle.manifest.inputs:
        shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
        if spec.name == "attention_mask":
            inputs[spec.name] = np.ones(shape, dtype=spec.dtype)
        else:
            # A cache of length 0 has nothing to repeat.
            inputs[spec.name] = (
                np.resize(sample[spec.name], shape) if sample[spec.name].size else np.zeros(shape, spec.dtype)
            )
    return inputs
