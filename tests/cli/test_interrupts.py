"""A command that is asked to stop says so, and leaves nothing half-written."""

from __future__ import annotations

import signal

import pytest

from elastic.selection import report
from tests.cli.conftest import elastic


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_cleans_up_when_it_is_stopped(universal_dir, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(report, "_write_page", lambda *args: signal.raise_signal(number))
    result = elastic("pareto", universal_dir, "-o", tmp_path / "report", "--candidates", 4, "--method", "heuristic")
    assert result.code == 128 + number
    assert result.err.endswith("Interrupted.\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before
