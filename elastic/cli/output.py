"""What commands print: tables on a terminal, plain text in a pipe, JSON for machines."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

from elastic.errors import ElasticError

_NUMBER = re.compile(r"-?[\d.,]+(e[+-]?\d+)?[kMGT]?")

Command = TypeVar("Command", bound=Callable[..., Any])


def reported(command: Command) -> Command:
    """End a command with one sentence and its exit code where Elastic raises an error on purpose."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        _quiet_libraries()
        with _noting_interrupts() as interrupts:
            try:
                return command(*args, **kwargs)
            except (Exception, KeyboardInterrupt) as error:
                if interrupts or isinstance(error, KeyboardInterrupt):
                    typer.echo("Interrupted.", err=True)
                    raise typer.Exit(128 + (interrupts or [signal.SIGINT])[0]) from None
                if isinstance(error, ElasticError):
                    raise _failed(str(error), error.exit_code) from None
                if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    # A full disk, a name that is too long: nothing that a command foresees.
                    where = f"{error.filename}: " if error.filename else ""
                    raise _failed(f"{where}{error.strerror or error}.") from None
                raise

    return run  # type: ignore[return-value]


_DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yield a list of the signals that ask to stop, Ctrl-C and termination, and clean up after either.

    Libraries in other languages make other errors of them than KeyboardInterrupt.
    """
    interrupts: list[int] = []

    def note_and_raise(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = {
        number: default
        for number, default in _DEFAULT_HANDLERS.items()
        if in_main_thread and signal.getsignal(number) is default
    }
    for number in ours:
        signal.signal(number, note_and_raise)
    try:
        yield interrupts
    finally:
        for number, default in ours.items():
            signal.signal(number, default)


def _failed(message: str, exit_code: int = 2) -> typer.Exit:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    return typer.Exit(exit_code)


def _quiet_libraries() -> None:
    """Keep libraries' advice about hardware and optional packages out of our output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Checkpoints load in well under a second, with one progress bar each; training has bars of its own.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def print_json(data: Any) -> None:
    """Print JSON on standard output; what is not a finite number is null."""
    typer.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_report(report: Any, as_json: bool) -> None:
    """Print what the runtime of a bundle reports."""
    from elastic.export.runtime.__main__ import describe

    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        typer.echo(describe(report))


def print_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Print rows under the columns of the first: a table on a terminal, aligned plain text in a pipe."""
    columns = list(rows[0]) if rows else []
    cells = [[str(row[column]) for column in columns] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(title) or None, title_justify="left")
        for column in columns:
            numeric = all(_NUMBER.fullmatch(str(row[column])) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
        for row in cells:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    if title:
        typer.echo(title)
    for row in [columns, *cells]:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    typer.echo(text, err=True)


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function ``(done, total)`` that draws a progress bar on a terminal, and is silent elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    with Progress(*Progress.get_default_columns()[:2], amount, TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
