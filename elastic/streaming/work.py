"""The folder in which an extraction grows: finished files survive an interruption, the final name comes last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elastic.cost import format_quantity
from elastic.errors import CheckError, ElasticError, OutputError, OutputExistsError
from elastic.folder import check_output, sha256

SUFFIX = ".extracting"


@dataclass
class Work:
    """An extraction under way."""

    folder: Path
    job: dict[str, Any]
    """What is extracted from what; an interrupted extraction continues only as the same job."""
    finished: dict[str, str] = field(default_factory=dict)
    """Files that are whole, with their sha256."""

    @property
    def checkpoint(self) -> Path:
        """The folder that becomes the output."""
        return self.folder / "checkpoint"

    def finish(self, name: str, write: Callable[[Path], str]) -> None:
        """Write a file by ``write(path) -> sha256``, or keep it from an earlier run."""
        if name in self.finished:
            return
        part = self.checkpoint / f"{name}.part"
        try:
            digest = write(part)
            part.rename(self.checkpoint / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self.finished[name] = digest
        self._save()

    @property
    def _state(self) -> Path:
        return self.folder / "progress.json"

    def _save(self) -> None:
        beside = self._state.with_suffix(".new")
        beside.write_text(json.dumps({"job": self.job, "finished": self.finished}, indent=2) + "\n")
        beside.replace(self._state)

    def start(self) -> None:
        """Make the folder, or find in it what an earlier run has finished.

        Raises:
            OutputExistsError: if it holds something else.
        """
        if not os.path.lexists(self.folder):
            self.checkpoint.mkdir(parents=True)
            self._save()
            return
        try:
            state = json.loads(self._state.read_text())
            same = state["job"] == json.loads(json.dumps(self.job))
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise OutputExistsError(
                f"{self.folder} holds another extraction that was interrupted; remove it or choose another output."
            )
        for path in self.checkpoint.iterdir():
            digest = state["finished"].get(path.name)
            if digest is not None and digest == sha256(path):
                self.finished[path.name] = digest
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._save()


@contextmanager
def work_folder(output: Path, job: dict[str, Any], num_bytes: Callable[[str], int]) -> Iterator[Work]:
    """Yield the work that becomes ``output`` when the block ends.

    If the block raises, finished files stay beside the output, under its name and `SUFFIX`, and the same
    job continues with them. A failed check leaves nothing.

    Args:
        output: folder to write; it must not exist.
        job: what is extracted from what, as JSON.
        num_bytes: size of each file of the job.

    Raises:
        OutputExistsError: if ``output`` exists, or another job was interrupted there.
        OutputError: if it cannot be written: a full disk, a read-only folder.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 (resolve() would follow a link at the path itself)
    check_output(output)
    work = Work(output.with_name(output.name + SUFFIX), job)
    with _explained(output, work):
        work.start()
        try:
            _check_space(work, sum(num_bytes(name) for name in job["files"] if name not in work.finished))
            yield work
            check_output(output)
            work.checkpoint.rename(output)
        except BaseException as error:
            if isinstance(error, CheckError) or not work.finished:
                shutil.rmtree(work.folder, ignore_errors=True)
            raise
        shutil.rmtree(work.folder, ignore_errors=True)


@contextmanager
def _explained(output: Path, work: Work) -> Iterator[None]:
    try:
        yield
    except ElasticError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written ({error.strerror or error}){_what_stays(work)}; make room or choose another "
            "output."
        ) from None


def _what_stays(work: Work) -> str:
    if not work.finished:
        return ""
    return f"; {len(work.finished)} finished files stay in {work.folder.name}, and the same command continues"


def _check_space(work: Work, needed: int) -> None:
    free = shutil.disk_usage(work.folder).free
    if needed > free:
        raise OutputError(
            f"{work.folder.parent} has {format_quantity(free)} bytes free, and the extracted weights take "
            f"{format_quantity(needed)}; make room or choose another output."
        )
