"""A command that is asked to stop says so, and leaves nothing half-written."""

from __future__ import annotations

import signal

import pytest

from elastic.selection import report
from tests.cli.conftest import elastic


@pytest.fixture(
    params=[(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)], ids=["SIGINT", "SIGTERM"]
)
def stop(request):
    """A signal with Python's own handler: tests that run in the background inherit that Ctrl-C is ignored."""
    number, handler = request.param
    before = signal.signal(number, handler)
    yield number
    assert signal.signal(number, before) is handler


def test_a_command_cleans_up_when_it_is_stopped(universal_dir, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(report, "_write_page", lambda *args: signal.raise_signal(stop))
    result = elastic("pareto", universal_dir, "-o", tmp_path / "report", "--candidates", 4, "--method", "heuristic")
    assert result.code == 128 + stop
    assert result.err.endswith("Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_what_the_shell_had_ignored_stays_ignored(universal_dir, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(report, "_write_page", lambda *args: signal.raise_signal(signal.SIGINT))
        result = elastic("pareto", universal_dir, "-o", tmp_path / "report", "--candidates", 4, "--method", "heuristic")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 0, result.err
