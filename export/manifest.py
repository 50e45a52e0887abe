"""Writes the manifest of a bundle: what the exporter knows, and the hash of every file that is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from .runtime.manifest import MANIFEST_NAME, Manifest, hash_file

PACKAGES = {
    "elastic": "elastic-transformers",
    "torch": "torch",
    "transformers": "transformers",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
}


def tool_versions(tools: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of what makes a bundle."""
    return {tool: _version(PACKAGES[tool]) for tool in tools}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` with the hashes of all files in the folder, and return it as written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    complete = replace(manifest, files={path.relative_to(folder).as_posix(): hash_file(path) for path in paths})
    (folder / MANIFEST_NAME).write_text(complete.to_json(), encoding="utf-8")
    return complete


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
