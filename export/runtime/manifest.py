"""The manifest of a bundle: what is in it, and what its graph takes, returns and was measured to do."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import BundleError, VerificationError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
FAMILY, ELASTIC = "family", "elastic-onnx"
KINDS = ("onnx", FAMILY, ELASTIC, "tensorrt")
"""One graph; several graphs over one file of weights; one graph whose control inputs choose the subnet; engines."""
PAST, PRESENT = "past_key_values", "present"
"""How the names of the cached keys and values begin: as inputs, and as outputs."""
MAY_BE_ZERO = ("past",)
"""Free dimensions that may be 0: nothing is cached before the first token."""
DERIVED_SIZES = ("total",)
"""Free dimensions that follow from others: ``total`` is ``past + sequence``."""
DTYPES = ("bool", "float16", "float32", "int32", "int64", "int8", "uint8")
MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""What a member may be called: its name begins the names of its files."""


@dataclass(frozen=True)
class FileEntry:
    """Size and content of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph; a dimension that is free at run time is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def has_sequence(self) -> bool:
        """Whether the second dimension runs over the positions of a text."""
        return len(self.shape) > 1 and self.shape[1] == "sequence"


@dataclass(frozen=True)
class Profile:
    """The sizes of free dimensions that one optimization profile of a TensorRT engine takes, and is fastest at."""

    min: dict[str, int]
    opt: dict[str, int]
    max: dict[str, int]

    @property
    def fixed(self) -> bool:
        """Whether it takes one size alone."""
        return self.min == self.max

    def shape(self, spec: TensorSpec, which: str) -> tuple[int, ...]:
        """Return the shape of an input or output at ``min``, ``opt`` or ``max``."""
        sizes: dict[str, int] = getattr(self, which)
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)

    def __str__(self) -> str:
        sizes = (
            (name, low, self.opt[name], self.max[name]) for name, low in self.min.items() if name not in DERIVED_SIZES
        )
        return ",".join(
            f"{name}={low}" if low == high else f"{name}={low}:{opt}:{high}" for name, low, opt, high in sizes
        )


@dataclass(frozen=True)
class Parity:
    """How far the graph was from the PyTorch model, and how far it may be."""

    precision: str
    max_abs_diff: float
    """The largest difference that was seen at export."""
    tolerance: float
    """The largest difference that passes."""
    argmax_tie: float | None
    """Classes this close in the expected logits may swap; None if classes are not compared."""
    shapes: tuple[dict[str, int], ...]
    """The sizes of the free dimensions that were compared."""
    samples: str
    """The file with inputs and the outputs that PyTorch gave for them."""


@dataclass(frozen=True)
class Member:
    """One subnet of a bundle that has several of them."""

    name: str
    graph: str
    """The file of its graph: one of its own in a family, the only one of an elastic graph."""
    inputs: tuple[TensorSpec, ...]
    """As for one graph, control inputs left out; members differ in their key-value caches."""
    outputs: tuple[TensorSpec, ...]
    parity: Parity
    subnet: dict[str, Any]
    cost: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    controls: dict[str, list[int] | list[float]] = field(default_factory=dict)
    """Values of all control inputs that select this subnet, flattened; none for a graph of its own."""


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself. Read it with `read_manifest`.

    Where a bundle has members, the largest is the first of them, and graph, inputs, outputs, parity, subnet, cost and
    quality of the manifest are those of the largest.
    """

    kind: str
    graph: str
    """The file of the graph."""
    model_type: str
    architecture: str
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_sizes: dict[str, int]
    """Upper limits of free dimensions, where the model has one."""
    parity: Parity
    tools: dict[str, str]
    """Versions of what made the bundle."""
    subnet: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    preprocess: dict[str, Any] | None = None
    weights: str | None = None
    """The file of weights that lies beside the graphs, where they share one."""
    controls: tuple[TensorSpec, ...] = ()
    """The inputs of an elastic graph that choose the subnet; they are not among ``inputs``."""
    members: tuple[Member, ...] = ()
    """The subnets, largest first; empty for one fixed graph."""
    profiles: tuple[Profile, ...] = ()
    """For TensorRT: the sizes that engines are built for."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Every file of the bundle except the manifest, by its path inside the folder."""
    format_version: int = FORMAT_VERSION

    def member(self, name: str) -> Member:
        """Return a member by its name.

        Raises:
            BundleError: if there is no such member (lists them).
        """
        for member in self.members:
            if member.name == name:
                return member
        names = ", ".join(member.name for member in self.members)
        raise BundleError(f"there is no subnet '{name}' in this bundle; it has {names or 'one fixed graph alone'}.")

    def of(self, member: Member) -> Manifest:
        """Return what the manifest would be if this member were alone."""
        shared = ("graph", "inputs", "outputs", "parity", "subnet", "cost", "quality")
        return replace(self, members=(), **{name: getattr(member, name) for name in shared})

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        data = asdict(self)
        ordered = {"format_version": data["format_version"], "seal": seal(data), **data}
        return json.dumps(ordered, indent=2, allow_nan=False) + "\n"


def seal(data: dict[str, Any]) -> str:
    """Return the sha256 of what a manifest says, however it is laid out.

    It finds accidents: whoever changes a manifest on purpose can seal it again.

    Raises:
        ValueError: if a number is not finite.
    """
    said = {key: value for key, value in data.items() if key != "seal"}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle; the files it lists are not opened.

    Raises:
        BundleError: if the folder is not a bundle, is of a newer format, or names files outside itself.
        VerificationError: if the manifest is not as it was written.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"'{folder}' is not a bundle: it has no {MANIFEST_NAME}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = seal(data if isinstance(data, dict) else {})
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    version = _get(data, "format_version", int, path)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version}, and this runtime reads up to {FORMAT_VERSION}; use the runtime "
            "inside the bundle, or a newer one."
        )
    if version < 1:
        raise BundleError(f"{path} has format version {version}; the first one is 1.")
    # Bundles that were written before there were seals have none.
    if data.get("seal", found) != found:
        raise VerificationError(f"{path} is not as it was written (its seal differs); copy the bundle again.")
    manifest = _parse(data, path)
    if manifest.kind not in KINDS:
        raise BundleError(f"{path} is of kind '{manifest.kind}', and this runtime knows {', '.join(KINDS)}.")
    for name in manifest.files:
        resolve_inside(folder, name)
    used = [manifest.graph, manifest.parity.samples, *([manifest.weights] if manifest.weights else [])]
    used += [name for member in manifest.members for name in (member.graph, member.parity.samples)]
    for name in used:
        if name not in manifest.files:
            raise BundleError(f"{path} uses the file '{name}' without listing it under 'files'.")
    _check_members(manifest, path)
    return manifest


def _check_members(manifest: Manifest, path: Path) -> None:
    members, kind = manifest.members, manifest.kind
    if bool(members) != (kind in (FAMILY, ELASTIC)) and kind != "tensorrt":
        raise BundleError(
            f"{path} is of kind '{kind}' and has {len(members) or 'no'} members, which do not go together."
        )
    if kind == FAMILY and manifest.weights is None:
        raise BundleError(f"{path} names no 'weights', the file that the graphs of a family share.")
    if bool(manifest.controls) != (kind == ELASTIC):
        raise BundleError(f"{path} is of kind '{kind}' and has {len(manifest.controls) or 'no'} control inputs.")
    names = [member.name.casefold() for member in members]
    for member in members:
        if not MEMBER_NAME.fullmatch(member.name) or names.count(member.name.casefold()) > 1:
            raise BundleError(
                f"{path} has a member named '{member.name}'; names are letters, digits, '.', '_', '+' or '-', and "
                "differ in more than their case."
            )
        if kind == ELASTIC and member.graph != manifest.graph:
            raise BundleError(f"{path} has the graph '{manifest.graph}', and '{member.graph}' for '{member.name}'.")
        _check_controls(manifest, member, path)
    if members and members[0].graph != manifest.graph:
        raise BundleError(f"{path} has the graph '{manifest.graph}', which is not that of its first member.")


def _check_controls(manifest: Manifest, member: Member, path: Path) -> None:
    """Check that a member gives every control as many values, of the right type, as it takes."""
    if member.controls.keys() != {spec.name for spec in manifest.controls}:
        raise BundleError(
            f"{path} sets the controls {sorted(member.controls)} for '{member.name}', and the graph takes "
            f"{sorted(spec.name for spec in manifest.controls)}."
        )
    for spec in manifest.controls:
        values = member.controls[spec.name]
        count = math.prod(size if isinstance(size, int) else 0 for size in spec.shape)
        kinds: tuple[type, ...] = (int, float) if spec.dtype.startswith("float") else (int,)
        if len(values) != count or not all(type(value) in kinds for value in values):
            raise BundleError(
                f"{path} sets '{spec.name}' of '{member.name}' to {values}, and it takes {count} numbers of type "
                f"{spec.dtype}."
            )


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a manifest names.

    Raises:
        BundleError: if it leaves the folder: an absolute path, ``..``, or a symbolic link out of it.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or bool(windows.anchor) or ".." in windows.parts or not posix.parts
    path = folder / name
    try:
        leaves = leaves or not path.resolve().is_relative_to(folder.resolve())
        path.is_file()
    except (ValueError, OSError, RuntimeError):  # no name of a file: too long, a NUL in it, links in a circle
        leaves = True
    if leaves:
        raise BundleError(f"{folder / MANIFEST_NAME} names '{name}', which is outside of the bundle.")
    return path


def hash_bytes(data: bytes) -> FileEntry:
    """Return the size and the sha256 of bytes."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def hash_file(path: Path) -> FileEntry:
    """Return the size and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def check_files(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Check that files (by default all) are what the manifest says.

    Raises:
        VerificationError: naming the first file that is missing, has another size, or another content.
    """
    for name in manifest.files if names is None else names:
        expected, path = manifest.files[name], resolve_inside(folder, name)
        if not path.is_file():
            raise VerificationError(f"'{name}' is missing in the bundle '{folder}'; copy the bundle again.")
        size = path.stat().st_size
        if size != expected.bytes:
            raise VerificationError(
                f"'{name}' in the bundle '{folder}' has {size} bytes, not {expected.bytes}; copy the bundle again."
            )
        if hash_file(path).sha256 != expected.sha256:
            raise VerificationError(
                f"'{name}' in the bundle '{folder}' is not the file that was exported (its sha256 differs); copy the "
                "bundle again."
            )


def weights_of(manifest: Manifest) -> list[str]:
    """Return the files of weights beside the graphs; those of another graph would load, and compute nonsense."""
    beside = [name for name in manifest.files if name.startswith(f"{manifest.graph}.")]
    return [*beside, *([manifest.weights] if manifest.weights else [])]


def _get(data: Any, key: str, kind: type | tuple[type, ...], path: Path) -> Any:
    if not isinstance(data, dict) or key not in data:
        raise BundleError(f"{path} has no '{key}' where one is needed.")
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"{path} has the value {value!r} for '{key}', which is of the wrong type.")
    return value


def _parse(data: dict[str, Any], path: Path) -> Manifest:
    optional = (dict, type(None))
    return Manifest(
        kind=_get(data, "kind", str, path),
        graph=_get(data, "graph", str, path),
        model_type=_get(data, "model_type", str, path),
        architecture=_get(data, "architecture", str, path),
        opset=_get(data, "opset", int, path),
        ir_version=_get(data, "ir_version", int, path),
        inputs=tuple(_tensor(item, path) for item in _get(data, "inputs", list, path)),
        outputs=tuple(_tensor(item, path) for item in _get(data, "outputs", list, path)),
        max_sizes=_sizes(_get(data, "max_sizes", dict, path), path),
        parity=_parity(_get(data, "parity", dict, path), path),
        tools={name: str(version) for name, version in _get(data, "tools", dict, path).items()},
        subnet=_get(data, "subnet", optional, path),
        cost=_get(data, "cost", optional, path),
        quality=_get(data, "quality", optional, path),
        preprocess=_get(data, "preprocess", optional, path),
        # Bundles that were written before there were members do not have these.
        weights=_get({"weights": None, **data}, "weights", (str, type(None)), path),
        controls=tuple(_tensor(item, path) for item in _get({"controls": [], **data}, "controls", list, path)),
        members=tuple(_member(item, path) for item in _get({"members": [], **data}, "members", list, path)),
        profiles=tuple(_profile(item, path) for item in _get({"profiles": [], **data}, "profiles", list, path)),
        files={
            name: FileEntry(sha256=_get(entry, "sha256", str, path), bytes=_get(entry, "bytes", int, path))
            for name, entry in _get(data, "files", dict, path).items()
        },
        format_version=_get(data, "format_version", int, path),
    )


def _member(data: Any, path: Path) -> Member:
    optional = (dict, type(None))
    controls = _get(data, "controls", dict, path)
    return Member(
        name=_get(data, "name", str, path),
        graph=_get(data, "graph", str, path),
        inputs=tuple(_tensor(item, path) for item in _get(data, "inputs", list, path)),
        outputs=tuple(_tensor(item, path) for item in _get(data, "outputs", list, path)),
        parity=_parity(_get(data, "parity", dict, path), path),
        subnet=_get(data, "subnet", dict, path),
        cost=_get(data, "cost", optional, path),
        quality=_get(data, "quality", optional, path),
        controls={name: _get(controls, name, list, path) for name in controls},
    )


def _tensor(data: Any, path: Path) -> TensorSpec:
    shape = tuple(_get(data, "shape", list, path))
    if not all(isinstance(size, str) or (type(size) is int and size > 0) for size in shape):
        raise BundleError(f"{path} has the shape {list(shape)}; a dimension is a whole number or a name.")
    dtype = _get(data, "dtype", str, path)
    if dtype not in DTYPES:
        raise BundleError(f"{path} has the type '{dtype}'; known are {', '.join(DTYPES)}.")
    return TensorSpec(name=_get(data, "name", str, path), dtype=dtype, shape=shape)


def _parity(data: dict[str, Any], path: Path) -> Parity:
    return Parity(
        precision=_get(data, "precision", str, path),
        max_abs_diff=_number(data, "max_abs_diff", path),
        tolerance=_number(data, "tolerance", path),
        argmax_tie=_get(data, "argmax_tie", (int, float, type(None)), path),
        shapes=tuple(_sizes(sizes, path) for sizes in _get(data, "shapes", list, path)),
        samples=_get(data, "samples", str, path),
    )


def _number(data: Any, key: str, path: Path) -> float:
    try:
        return float(_get(data, key, (int, float), path))
    except OverflowError:
        raise BundleError(f"{path} has a number for '{key}' that is too large.") from None


def _profile(data: Any, path: Path) -> Profile:
    low, opt, high = (_sizes(_get(data, which, dict, path), path) for which in ("min", "opt", "max"))
    if not low.keys() == opt.keys() == high.keys() or not all(0 <= low[n] <= opt[n] <= high[n] for n in low):
        raise BundleError(f"{path} has the profile {data}; every size needs min <= opt <= max.")
    return Profile(low, opt, high)


def _sizes(data: Any, path: Path) -> dict[str, int]:
    return {name: _get(data, name, int, path) for name in (data if isinstance(data, dict) else {})}
