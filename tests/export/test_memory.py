"""What is freed while a graph is loaded goes back to the system."""

from __future__ import annotations

import ctypes
import platform
import re
from pathlib import Path

import pytest

from elastic.export.runtime import ort

from .small_bundles import write_bundle

BLOCK, COUNT = 64 * 1024, 512


def resident_bytes() -> int:
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries return memory by themselves")
def test_freed_blocks_below_a_used_one_are_returned():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    ort.return_freed_memory()  # Of whatever ran before.
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:
        libc.free(block)
    kept = resident_bytes()
    ort.return_freed_memory()
    returned = kept - resident_bytes()
    libc.free(blocks[-1])
    assert returned > BLOCK * COUNT / 2


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_graphs_open_where_the_c_library_cannot_be_asked(tmp_path, monkeypatch, error):
    bundle = write_bundle(tmp_path / "bundle")

    def refuse(name):
        raise error

    monkeypatch.setattr(ort.ctypes, "CDLL", refuse)
    assert ort.open_graph(bundle / "model.onnx", threads=1).get_inputs()
