"""Engines on disk: each beside a record of what it was built from, on what, and how it was verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .device import Device
from .errors import BundleError, VerificationError
from .manifest import Manifest, hash_file

FOLDER = "engines"
RECORD_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How an engine is built."""

    stripped: bool = False
    """Leave the weights out of the plan, and take them from the bundle when it is loaded."""
    workspace: int | None = None
    """Bytes of scratch memory that a kernel may use at most; by default, all of the device's memory."""


@dataclass(frozen=True)
class Identity:
    """What an engine was built from, and for: if anything differs, another engine is needed."""

    device: Device
    graph: str
    onnx_sha256: str
    weights_sha256: str
    """Of the files of weights beside the graph, in their order."""
    profiles: tuple[str, ...]

    @property
    def key(self) -> str:
        """A short name that is another one for another identity."""
        return _digest(asdict(self))

    @property
    def file_name(self) -> str:
        """The name of the engine."""
        return f"{Path(self.graph).stem}.{self.key}.plan"

    @property
    def cache_name(self) -> str:
        """The name of the timing cache, which all engines for one device share."""
        return f"timing.{_digest(asdict(self.device))}.cache"


@dataclass(frozen=True)
class EngineRecord:
    """What stands beside an engine."""

    file: str
    sha256: str
    bytes: int
    identity: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
    """How long it took to build."""
    samples: int
    max_abs_diff: float
    """The largest difference to PyTorch on the parity samples."""
    tolerance: float
    record_version: int = RECORD_VERSION


def identify(manifest: Manifest, device: Device, weights: Sequence[str]) -> Identity:
    """Return what an engine of this graph would be bound to; the hashes are those of the manifest."""
    return Identity(
        device=device,
        graph=manifest.graph,
        onnx_sha256=manifest.files[manifest.graph].sha256,
        weights_sha256=",".join(manifest.files[name].sha256 for name in weights),
        profiles=tuple(str(profile) for profile in manifest.profiles),
    )


def find_engine(folder: Path, identity: Identity) -> EngineRecord | None:
    """Return the record of the engine for this graph on this device, if there is one."""
    path = _record_path(folder / FOLDER / identity.file_name)
    if not path.is_file() or not (folder / FOLDER / identity.file_name).is_file():
        return None
    record = _read_record(path)
    return record if record is not None and record.file == identity.file_name else None


def other_devices(folder: Path, graph: str) -> list[str]:
    """Return the devices that engines of this graph were built for."""
    found = []
    for record in _records(folder):
        if record.identity.get("graph") == graph:
            found.append(str(Device(**record.identity["device"])))
    return sorted(set(found))


def has_engines(folder: Path) -> bool:
    """Whether any engine was built in this bundle."""
    return any(True for _ in _records(folder))


def read_engine(folder: Path, record: EngineRecord) -> bytes:
    """Return an engine after checking that it is the one that was built and verified.

    Raises:
        VerificationError: if it is not.
    """
    path = folder / FOLDER / record.file
    if not path.is_file() or hash_file(path).sha256 != record.sha256:
        raise VerificationError(
            f"the engine '{path}' is not the one that was built and verified; build it again with --force."
        )
    return path.read_bytes()


def write_engine(folder: Path, plan: bytes, record: EngineRecord) -> Path:
    """Write an engine, then its record; neither is ever there in part."""
    path = folder / FOLDER / record.file
    write_whole(path, plan)
    write_whole(_record_path(path), (json.dumps(asdict(record), indent=2) + "\n").encode())
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        BundleError: if it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BundleError(f"'{path}' cannot be written: {error.strerror or error}.") from None


def _records(folder: Path) -> Iterator[EngineRecord]:
    for path in sorted((folder / FOLDER).glob("*.plan.json")):
        record = _read_record(path)
        if record is not None:
            yield record


def _read_record(path: Path) -> EngineRecord | None:
    try:
        record = EngineRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # Of another version, or damaged: as if it was not there.
    return record if record.record_version == RECORD_VERSION else None


def _record_path(plan: Path) -> Path:
    return plan.with_name(f"{plan.name}.json")


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
