"""New folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elastic.errors import OutputError, OutputExistsError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends, or leaves nothing if it raises.

    Raises:
        OutputExistsError: if ``path`` is there already, before or after the block.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link at the path itself)
    check_output(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder = beside / path.name
        folder.mkdir()
        yield folder
        check_output(path)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # somebody else may have put something there meanwhile
                parent.rmdir()
        raise
    beside.rmdir()


def check_output(path: Path) -> None:
    """Check that nothing is at ``path``, and that something can be.

    Raises:
        OutputExistsError: if something is, be it a link that leads nowhere.
        OutputError: if its folder is none, or cannot be written to.
    """
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{path} exists already, and nothing is overwritten; choose another output or remove it."
        )
    parent = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())  # noqa: PTH100
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be written: {parent} is not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {parent} is read-only.")


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
