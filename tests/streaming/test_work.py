"""Interruptions, full disks and read-only folders: the source stays, nothing half-written has the final name."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import elastic.streaming.extract as extract_module
from elastic.errors import OutputError, OutputExistsError
from elastic.nested import get_elastic
from elastic.streaming import stream_extraction
from tests.conftest import make_tiny_elastic
from tests.streaming.test_extract import mixed, save_universal, weights_of
from tests.tiny import MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def universal(tmp_path):
    model = make_tiny_elastic(MODELS["llama"]())
    return save_universal(model, tmp_path / "universal"), mixed(model)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_at(monkeypatch, number, error):
    """Let writing of the file of this number fail in its middle; return the names of the files that are written."""
    whole, started = extract_module.write_file, []

    def write_file(path, layout, read, on_bytes):
        started.append(path.name)
        if len(started) != number:
            return whole(path, layout, read, on_bytes)

        def read_some(name):
            if name == max(layout):
                raise error
            return read(name)

        return whole(path, layout, read_some, on_bytes)

    monkeypatch.setattr(extract_module, "write_file", write_file)
    return started


def test_an_interrupted_extraction_continues(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    source = contents(folder)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stream_extraction(folder, subnet, tmp_path / "out", max_shard_size="10KB")
    assert contents(folder) == source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.extracting", "universal"]
    left = sorted((tmp_path / "out.extracting" / "checkpoint").iterdir())
    assert len(left) == 2 and not any(path.suffix == ".part" for path in left)
    left[1].write_bytes(left[1].read_bytes()[:-1] + b"x")

    started = stop_at(monkeypatch, 0, None)
    progress = []
    stream_extraction(
        folder, subnet, tmp_path / "out", max_shard_size="10KB", on_progress=lambda *now: progress.append(now)
    )
    assert left[0].name + ".part" not in started and left[1].name + ".part" in started
    assert progress[-1][0] == progress[-1][1]
    assert progress == sorted(progress)
    stream_extraction(folder, subnet, tmp_path / "whole")
    one, other = weights_of(tmp_path / "out"), weights_of(tmp_path / "whole")
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "universal", "whole"]


def test_another_job_does_not_continue(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    with monkeypatch.context() as patch:
        stop_at(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stream_extraction(folder, subnet, tmp_path / "out", max_shard_size="10KB")
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match="out.extracting holds another extraction"):
        stream_extraction(folder, subnet, tmp_path / "out", max_shard_size="20KB")
    (tmp_path / "other.extracting").mkdir()
    (tmp_path / "other.extracting" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match="other.extracting holds another extraction"):
        stream_extraction(folder, subnet, tmp_path / "other")
    (tmp_path / "other.extracting" / "mine.txt").unlink()
    (tmp_path / "other.extracting").rmdir()
    assert contents(tmp_path) == before


def test_a_full_disk(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    before = contents(folder)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, full)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); make room"):
            stream_extraction(folder, subnet, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["universal"]
    with monkeypatch.context() as patch:
        stop_at(patch, 3, full)
        with pytest.raises(OutputError, match="2 finished files stay in out.extracting, and the same"):
            stream_extraction(folder, subnet, tmp_path / "out", max_shard_size="10KB")
    assert contents(folder) == before
    stream_extraction(folder, subnet, tmp_path / "out", max_shard_size="10KB")


def test_too_little_room_is_known_before(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000, "total": usage.f_blocks})())
    with pytest.raises(OutputError, match="has 1k bytes free, and the extracted weights take"):
        stream_extraction(folder, subnet, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["universal"]


def test_files_that_may_not_grow(universal, tmp_path):
    """A real failing write: the kernel refuses files of more than 20,000 bytes."""
    folder, subnet = universal
    before = contents(folder)
    script = (
        "import json, sys; from pathlib import Path; from elastic.space import Subnet\n"
        "from elastic.streaming import stream_extraction\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "stream_extraction(Path(sys.argv[1]), Subnet.from_dict(json.loads(sys.argv[2])), Path(sys.argv[3]))"
    )
    arguments = [str(folder), json.dumps(subnet.to_dict()), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and "OutputError" in done.stderr and "File too large" in done.stderr
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["universal"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_read_only_folder(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom permissions do not stop
        make = Path.mkdir

        def mkdir(path, *args, **kwargs):
            if closed in path.parents:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            make(path, *args, **kwargs)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutputError, match="closed/out cannot be written"):
        stream_extraction(folder, subnet, closed / "out")
    assert not list(closed.iterdir())


def test_nothing_is_overwritten(universal, tmp_path, monkeypatch):
    folder, subnet = universal
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        stream_extraction(folder, subnet, tmp_path / "out")
    whole = extract_module._describe

    def describe(*args):
        (tmp_path / "late").mkdir()
        whole(*args)

    monkeypatch.setattr(extract_module, "_describe", describe)
    with pytest.raises(OutputExistsError):
        stream_extraction(folder, subnet, tmp_path / "late")
    assert not list((tmp_path / "late").iterdir())


def test_the_largest_subnet_is_the_model_itself(universal, tmp_path):
    folder, _ = universal
    largest = get_elastic(make_tiny_elastic(MODELS["llama"]())).resolved.largest
    stream_extraction(folder, largest, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
