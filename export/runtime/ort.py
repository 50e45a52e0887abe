"""Opens graphs on ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from .errors import BundleError

# On CPUs the fused kernel takes several times as long as Add and LayerNormalization apart.
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


def available_cpus() -> int:
    """Return how many CPUs this process may use; ONNX Runtime by itself would count all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runtime_version() -> str:
    """Return the name and version of what runs graphs here."""
    try:
        import onnxruntime
    except ImportError:
        return "none"
    return f"onnxruntime {onnxruntime.__version__}"


def open_graph(path: Path, *, threads: int | None = None, spinning: bool = True) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Threads that wait for work spin for a while before they sleep: the fastest where the CPUs are free. Without
    ``spinning`` they sleep at once and leave the CPUs to others.

    Raises:
        BundleError: if ONNX Runtime is not installed, or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BundleError("onnxruntime is not installed; install it with `pip install onnxruntime`.") from None
    if threads is not None and threads < 1:
        raise BundleError(f"the number of threads must be 1 or more, not {threads}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
    except Exception as error:  # ONNX Runtime's own exception types share no base class.
        raise BundleError(f"ONNX Runtime cannot load '{path}': {first_line(error)}") from None
    return_freed_memory()
    return session


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library would keep it (glibc).

    ONNX Runtime frees weights after it has arranged copies of them for its kernels. They lie between what is still in
    use, so glibc keeps as much as a third of a session's memory for later allocations, more or less of it from process
    to process.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # Other C libraries return it by themselves, or cannot be asked.
        return


def first_line(error: Exception) -> str:
    """Return the first line of what ONNX Runtime says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
