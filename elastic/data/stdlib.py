"""The Python standard library of the running interpreter: real text that every machine has."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def library_sources() -> Iterator[tuple[str, str]]:
    """Yield ``(split, source)`` of every file.

    Whole files are held out, chosen by the hash of their path: 5 % for validation, 5 % for test.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda p: _hash(p.relative_to(root))):
        name = path.relative_to(root)
        if not _NO_LIBRARY.intersection(name.parts):
            share = _hash(name) % 100
            split = "validation" if share < 5 else "test" if share < 10 else "train"
            yield split, path.read_text(encoding="utf-8", errors="replace")


def _hash(path: Path) -> int:
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16)
