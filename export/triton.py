"""Writes a model repository for NVIDIA's Triton Inference Server from a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elastic.errors import CheckpointError
from elastic.folder import new_folder

from .runtime import manifest as manifests
from .runtime.engine import FOLDER as ENGINES
from .runtime.errors import BundleError
from .runtime.manifest import ELASTIC, PAST, Manifest, TensorSpec, check_files, weights_of
from .runtime.session import members_of

TYPES = {"bool": "TYPE_BOOL", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "int32": "TYPE_INT32",
         "int64": "TYPE_INT64", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8"}  # fmt: skip
"""Triton's names of types (``model_config.proto``)."""

MASK, GRAPH = "attention_mask", "model.onnx"

MAX_BATCH = 32
"""Requests that are put together at most, where the bundle has no limit."""

QUEUE_MICROSECONDS = 500
"""How long a request may wait for others to join its batch."""

WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class Literal:
    """A name of an enumeration: text without quotation marks."""

    text: str


def write_triton(bundle: Path, repository: Path, *, max_batch: int = MAX_BATCH) -> tuple[str, ...]:
    """Write a model repository from a bundle: a model for each subnet, with its configuration, and warm-up.

    A bundle for ONNX Runtime runs there on Triton's ``onnxruntime`` backend; one for TensorRT on ``tensorrt``, after
    ``python3 -m runtime build`` in the bundle and ``install_engines.sh`` in the repository, on the serving machine.

    Args:
        bundle: the folder of a bundle.
        repository: a folder that is not there yet.
        max_batch: requests that are put together at most.

    Returns:
        The names of the models.

    Raises:
        CheckpointError: if the folder is not a bundle, or one that Triton cannot serve.
        OutputExistsError: if ``repository`` is there already.
    """
    try:
        manifest = manifests.read_manifest(bundle)
        if manifest.kind == ELASTIC:
            raise CheckpointError(
                f"'{bundle}' is one graph with control inputs, which Triton's requests would have to set; export "
                "a family."
            )
        members = members_of(manifest)
        if any(spec.name.startswith(f"{PAST}.") for spec in manifest.inputs):
            raise CheckpointError(
                f"'{bundle}' is a decoder with a key-value cache, which a request would have to carry along; serve it "
                "with the runtime of the bundle."
            )
        check_files(bundle, manifest, [name for one in members for name in (one.graph, *weights_of(one))])
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    base = _model_name(bundle)
    names = [f"{base}_{member.name.lower()}" for member in manifest.members] or [base]
    engines = []
    with new_folder(repository) as folder:
        for name, one in zip(names, members, strict=True):
            version = folder / name / "1"
            version.mkdir(parents=True)
            if one.profiles:
                engines.append((Path(one.graph).stem, f"{name}/1/model.plan"))
            else:
                # ONNX Runtime reads weights from the graph's own folder alone.
                for file in (one.graph, *weights_of(one)):
                    shutil.copyfile(bundle / file, version / (GRAPH if file == one.graph else file))
            config = model_config(name, one, max_batch=max_batch)
            (folder / name / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
            _write_masks(folder / name / "warmup", config)
        if engines:
            _write_installer(folder, engines)
    return tuple(names)


def model_config(name: str, manifest: Manifest, *, max_batch: int = MAX_BATCH) -> dict[str, Any]:
    """Return the configuration of one model, as the fields of Triton's ``ModelConfig``.

    Where the batch is free, Triton adds it itself, and the first dimension of every tensor is left out.
    """
    tensorrt = bool(manifest.profiles)
    largest = _largest_batch(manifest, max_batch)
    first = 1 if largest else 0
    config: dict[str, Any] = {
        "name": name,
        "backend": "tensorrt" if tensorrt else "onnxruntime",
        "default_model_filename": "model.plan" if tensorrt else GRAPH,
        "max_batch_size": largest,
        "input": [_tensor(spec, first) for spec in manifest.inputs],
        "output": [_tensor(spec, first) for spec in manifest.outputs],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    group: dict[str, Any] = {"count": 1, "kind": Literal("KIND_GPU" if tensorrt else "KIND_CPU")}
    if tensorrt:
        group["profile"] = [str(number) for number in range(len(manifest.profiles))]
    config["instance_group"] = [group]
    if largest > 1:
        preferred = sorted({size for size in (4, 8, 16, largest) if 1 < size <= largest})
        config["dynamic_batching"] = {
            "preferred_batch_size": preferred,
            "max_queue_delay_microseconds": QUEUE_MICROSECONDS,
        }
    if tensorrt and all(profile.fixed for profile in manifest.profiles):
        config["optimization"] = {"cuda": {"graphs": True, "graph_spec": _graph_specs(manifest, first)}}
    elif not tensorrt:
        # Level -1 is ONNX Runtime's "basic": the fusions beyond it are slower on CPUs (docs/onnx.md).
        config["optimization"] = {"graph": {"level": -1}}
    config["model_warmup"] = [
        {
            "name": f"size_{number}",
            "batch_size": sizes["batch"] if first else 1,
            "inputs": _warm_up(manifest.inputs, sizes, first),
        }
        for number, sizes in enumerate(_warm_up_sizes(manifest))
    ]
    return config


def to_text(fields: Mapping[str, Any], indent: int = 0) -> str:
    """Return fields in protobuf's text format."""
    lines = []
    margin = "  " * indent
    for name, value in fields.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{margin}{name} {{\n{to_text(one, indent + 1)}{margin}}}\n")
            else:
                lines.append(f"{margin}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(map(_scalar, value))} ]" if value else "[]"
    if isinstance(value, Literal):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else json.dumps(value)


def _tensor(spec: TensorSpec, first: int) -> dict[str, Any]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape[first:]]
    return {"name": spec.name, "data_type": Literal(TYPES[spec.dtype]), "dims": dims}


def _graph_specs(manifest: Manifest, first: int) -> list[dict[str, Any]]:
    return [
        {
            "batch_size": profile.opt["batch"] if first else 0,
            "input": [
                {"key": spec.name, "value": {"dim": list(profile.shape(spec, "opt")[first:])}}
                for spec in manifest.inputs
            ],
        }
        for profile in manifest.profiles
    ]


def _warm_up_sizes(manifest: Manifest) -> list[dict[str, int]]:
    if manifest.profiles:
        return [profile.opt for profile in manifest.profiles]
    tokens = min(manifest.max_sizes.get("sequence", WARM_UP_TOKENS), WARM_UP_TOKENS)
    return [{"batch": 1, "sequence": tokens}]


def _warm_up(inputs: Iterable[TensorSpec], sizes: Mapping[str, int], first: int) -> list[dict[str, Any]]:
    """Return inputs of zeros, and a mask of ones: one of zeros would leave nothing to attend to."""
    found = []
    for spec in inputs:
        dims = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape[first:]]
        value: dict[str, Any] = {"data_type": Literal(TYPES[spec.dtype]), "dims": dims}
        if spec.name == MASK:
            value["input_data_file"] = f"{MASK}_{'x'.join(map(str, dims))}"
        else:
            value["zero_data"] = True
        found.append({"key": spec.name, "value": value})
    return found


def _write_masks(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the masks of ones that the warm-up reads."""
    for warm_up in config["model_warmup"]:
        for tensor in warm_up["inputs"]:
            if "input_data_file" in tensor["value"]:
                folder.mkdir(exist_ok=True)
                ones = np.ones(tensor["value"]["dims"], dtype="<i8")
                (folder / tensor["value"]["input_data_file"]).write_bytes(ones.tobytes())


def _largest_batch(manifest: Manifest, max_batch: int) -> int:
    """Return the largest batch that Triton may make, or 0 where the graph has one of its own."""
    if isinstance(manifest.inputs[0].shape[0], int):
        return 0
    return min(manifest.max_sizes.get("batch", max_batch), max_batch)


def _model_name(bundle: Path) -> str:
    name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in bundle.resolve().name)
    return name or "model"


def _write_installer(folder: Path, engines: Iterable[tuple[str, str]]) -> None:
    lines = [
        "#!/bin/sh",
        "# Copies the engines that were built on this machine into the repository: sh install_engines.sh BUNDLE",
        "set -eu",
        'bundle=$(cd "${1:?the folder of the bundle}" && pwd)',
        'cd "$(dirname "$0")"',
        "install() {",
        f'    set -- "$2" "$bundle/{ENGINES}/$1".????????????????.plan',
        '    if [ $# -ne 2 ] || [ ! -f "$2" ]; then',
        '        echo "$bundle has no engine, or several; run: python3 -m runtime build" >&2',
        "        exit 1",
        "    fi",
        '    if grep -q \'"stripped": true\' "$2.json"; then',
        '        echo "$2 has no weights of its own; build it without --strip" >&2',
        "        exit 1",
        "    fi",
        '    cp "$2" "$1"',
        "}",
        *(f"install {stem} {target}" for stem, target in engines),
    ]  # fmt: skip
    (folder / "install_engines.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
