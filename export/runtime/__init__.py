"""Runs a bundle on a device: Python 3.10 or later, NumPy and ONNX Runtime, nothing else.

This folder is copied into every bundle: ``python3 -m runtime verify .`` inside the bundle needs no
installation. There it compares its own files with the manifest before it uses them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path


def _damage(folder: Path) -> str | None:
    """Say which file of this runtime is not the exported one, or return None if all are, or no manifest lists them."""
    try:
        files = json.loads((folder.parent / "manifest.json").read_text(encoding="utf-8"))["files"]
        expected = {name: files[name]["sha256"] for name in files if name.startswith(f"{folder.name}/")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # What reads the manifest says what is wrong with it.
    for name, sha256 in expected.items():
        path = folder.parent / name
        if not path.is_file():
            return f"'{name}' is missing in the bundle '{folder.parent}'; copy the bundle again."
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return (
                f"'{name}' in the bundle '{folder.parent}' is not the file that was exported (its sha256 differs); "
                "copy the bundle again."
            )
    return None


if __name__ == "runtime" and (_found := _damage(Path(__file__).parent)):
    if sys.argv[:1] == ["-m"]:
        sys.stderr.write(f"error: {_found}\n")
        raise SystemExit(1)
    raise ImportError(_found)
