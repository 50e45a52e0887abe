"""Builds TensorRT engines on the device that runs them, and verifies each before it may be used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .backend import TENSORRT
from .device import new_logger, open_device, open_tensorrt
from .engine import FOLDER, EngineRecord, Identity, Settings, find_engine, identify, write_engine, write_whole
from .engine_session import EngineSession
from .errors import BundleError, VerificationError
from .manifest import Manifest, check_files, hash_bytes, read_manifest, weights_of
from .session import Bundle, members_of
from .verify import compare_samples

MEMORY_ERRORS = re.compile(r"out of memory|insufficient memory|OutOfMemory|memory allocation|requested amount", re.I)
NODE_ERROR = re.compile(r"could not find any implementation for node (\{?[^}\s][^}]*\}?)", re.I)


RUNS = 3
"""Of each parity sample: the first as it is, the second captures a CUDA graph where it can, the third launches it."""


@dataclass(frozen=True)
class BuildReport:
    """The engines of a bundle on this device."""

    bundle: str
    device: str
    engines: tuple[EngineRecord, ...]
    reused: int
    """How many of them were there already."""


def build(
    folder: Path,
    *,
    workspace: int | None = None,
    stripped: bool = False,
    force: bool = False,
    subnets: Sequence[str] = (),
    say: Callable[[str], object] = lambda text: None,
) -> BuildReport:
    """Build an engine for every graph of a bundle, and verify each on the parity samples.

    An engine that is there for the same graph, profiles, device, TensorRT and settings is kept.

    Args:
        folder: the bundle.
        workspace: bytes of scratch memory that a kernel may use at most.
        stripped: leave the weights out of the engines; they come from the bundle when an engine is loaded.
        force: build in any case.
        subnets: only these members of a bundle with several.
        say: is told what is done, before it takes minutes.

    Raises:
        BundleError: if the bundle is not for TensorRT, TensorRT is missing or too old, reads an operator not, or the
            device has too little memory.
        VerificationError: if a file is not the exported one, or an engine does not reproduce the parity samples.
    """
    manifest = read_manifest(folder)
    if not manifest.profiles:
        raise BundleError(
            f"the bundle '{folder}' has no profiles to build engines for; export it with `elastic export "
            "--to tensorrt`."
        )
    settings = Settings(stripped=stripped, workspace=workspace)
    trt = open_tensorrt()
    device, cuda = open_device(trt)
    wanted = members_of(manifest, subnets)
    check_files(folder, manifest, dict.fromkeys(name for one in wanted for name in _needed(one)))
    records, reused = [], 0
    for one in wanted:
        identity = identify(one, device, weights_of(one))
        record = None if force else find_engine(folder, identity)
        if record is not None and record.settings == asdict(settings):
            reused += 1
        else:
            say(f"building {identity.file_name} for {device}; this takes minutes")
            record = _build_one(trt, cuda, folder, one, identity, settings)
        records.append(record)
    return BuildReport(str(folder), str(device), tuple(records), reused)


def _needed(manifest: Manifest) -> list[str]:
    return [manifest.graph, *weights_of(manifest), manifest.parity.samples]


def _build_one(
    trt: Any, cuda: Any, folder: Path, manifest: Manifest, identity: Identity, settings: Settings
) -> EngineRecord:
    started = time.perf_counter()
    cache = folder / FOLDER / identity.cache_name
    plan, timings = build_plan(
        trt, folder / manifest.graph, manifest, settings, cache.read_bytes() if cache.is_file() else b""
    )
    if timings:
        write_whole(cache, timings)
    seconds = time.perf_counter() - started
    weights = folder / manifest.graph if settings.stripped else None
    session = EngineSession(trt, cuda, plan, manifest, weights=weights)
    try:
        bundle = Bundle.of(folder, manifest, None, session, TENSORRT)
        samples, largest = compare_samples(bundle, runs=RUNS)
    except VerificationError as error:
        raise VerificationError(f"the engine for {identity.device} was not kept: {error}") from None
    finally:
        session.close()
    record = EngineRecord(
        file=identity.file_name,
        sha256=hash_bytes(plan).sha256,
        bytes=len(plan),
        identity=asdict(identity),
        settings=asdict(settings),
        seconds=round(seconds, 3),
        samples=samples,
        max_abs_diff=largest,
        tolerance=manifest.parity.tolerance,
    )
    write_engine(folder, plan, record)
    return record


def build_plan(trt: Any, graph: Path, manifest: Manifest, settings: Settings, timings: bytes) -> tuple[bytes, bytes]:
    """Build a plan, strongly typed: its precision is that of the graph.

    Args:
        trt: the module ``tensorrt``.
        graph: the ONNX file.
        manifest: says what the inputs and the profiles are.
        settings: how to build it.
        timings: an earlier timing cache of this device, or nothing.

    Returns:
        The plan, and the timing cache that is to be kept.

    Raises:
        BundleError: saying what TensorRT cannot do: an operator, the memory, or anything else by its first error.
    """
    logger = new_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # pybind11's way to say that the factory returned nothing.
        raise BundleError(f"TensorRT finds no usable GPU here{_reason(logger)}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BundleError(_parser_error(trt, parser, graph, logger))
    config = builder.create_builder_config()
    # What is exported as float32 is to be float32; half of the bits would fail the parity samples.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        # Without it, refitting would assume any weights, and TensorRT 11.3 loses biases then.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    _add_profiles(builder, config, manifest)
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # It was another device's, or damaged.
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(_build_error(trt, graph, settings, logger))
    kept = config.get_timing_cache()
    return bytes(plan), bytes(kept.serialize()) if kept is not None else b""


def _add_profiles(builder: Any, config: Any, manifest: Manifest) -> None:
    free = [spec for spec in manifest.inputs if any(isinstance(dim, str) for dim in spec.shape)]
    if not free:
        return
    for profile in manifest.profiles:
        given = builder.create_optimization_profile()
        for spec in free:
            given.set_shape(spec.name, *(profile.shape(spec, which) for which in ("min", "opt", "max")))
        if config.add_optimization_profile(given) < 0:
            raise BundleError(f"TensorRT does not take the profile {profile} for this graph.")


def _parser_error(trt: Any, parser: Any, graph: Path, logger: Any) -> str:
    if parser.num_errors == 0:
        return f"TensorRT {trt.__version__} cannot read '{graph}'{_reason(logger)}"
    error = parser.get_error(0)
    description = first_sentence(error.desc())
    if error.node_operator():
        return (
            f"TensorRT {trt.__version__} cannot read the operator {error.node_operator()} (node '{error.node_name()}') "
            f"of '{graph}': {description}"
        )
    return f"TensorRT {trt.__version__} cannot read '{graph}': {description}"


def _build_error(trt: Any, graph: Path, settings: Settings, logger: Any) -> str:
    text = "\n".join(logger.errors)
    if node := NODE_ERROR.search(text):
        limit = f" within a workspace of {settings.workspace / 2**20:.0f} MiB" if settings.workspace else ""
        return (
            f"TensorRT {trt.__version__} has no kernel for {node[1].rstrip('.')} of '{graph}'{limit}; "
            f"{'give a larger --workspace' if limit else 'export with another --precision'}."
        )
    if MEMORY_ERRORS.search(text):
        return (
            f"there is too little memory to build '{graph}'; close other programs, give a smaller --workspace (such as "
            "512MiB), or export for smaller profiles."
        )
    return f"TensorRT {trt.__version__} cannot build '{graph}'{_reason(logger)}"


def _reason(logger: Any) -> str:
    return f": {first_sentence(logger.errors[0])}" if logger.errors else "."


def read_size(text: str) -> int:
    """Read ``512MiB``, ``1.5GB`` or bytes.

    Raises:
        BundleError: if it is no such size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMG])(i?)B?)?\s*", text, re.I)
    if found is None or not float(found[1]):
        raise BundleError(f"'{text}' is not a size; write one such as 512MiB.")
    power = " KMG".index((found[2] or " ").upper())
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def first_sentence(text: str) -> str:
    """Return the first line of what TensorRT says, as the end of a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{(lines or ['no reason is given'])[0].rstrip('.')}."
