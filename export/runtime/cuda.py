"""The few functions of the CUDA runtime that an engine needs, called through ctypes: no package is installed for them.

Their names, arguments and numbers are the same in CUDA 12 (JetPack 6) and 13 (JetPack 7).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import BundleError

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "/usr/local/cuda/lib64/libcudart.so")

COMPUTE_CAPABILITY = (75, 76)
MULTIPROCESSORS = 16
INTEGRATED = 18
"""Numbers of device attributes (``cudaDeviceAttr``)."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
_NON_BLOCKING = 1
_ATTACH_GLOBAL = 1
_CAPTURE_THREAD_LOCAL = 1

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cudaGetDevice": (_POINTER,),
    "cudaDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cudaMemGetInfo": (_POINTER, _POINTER),
    "cudaMalloc": (_POINTER, _SIZE),
    "cudaMallocManaged": (_POINTER, _SIZE, ctypes.c_uint),
    "cudaHostAlloc": (_POINTER, _SIZE, ctypes.c_uint),
    "cudaFree": (_POINTER,),
    "cudaFreeHost": (_POINTER,),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "cudaStreamCreateWithFlags": (_POINTER, ctypes.c_uint),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaStreamBeginCapture": (_POINTER, _INT),
    "cudaStreamEndCapture": (_POINTER, _POINTER),
    "cudaGraphInstantiate": (_POINTER, _POINTER, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_POINTER, _POINTER),
    "cudaGraphDestroy": (_POINTER,),
    "cudaGraphExecDestroy": (_POINTER,),
    "cudaGetLastError": (),
}


class CudaError(BundleError):
    """A function of the CUDA runtime that failed."""


class Cuda:
    """The CUDA runtime on the current device; handles and addresses are integers."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.device = self._integer("cudaGetDevice")

    def attribute(self, number: int) -> int:
        """Return an attribute of the device."""
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), number, self.device)
        return value.value

    @property
    def integrated(self) -> bool:
        """Whether GPU and CPU share their memory, as on a Jetson."""
        return bool(self.attribute(INTEGRATED))

    def memory(self) -> tuple[int, int]:
        """Return the free and all bytes of the device's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Allocate memory of the device."""
        return self._pointer("cudaMalloc", size)

    def allocate_managed(self, size: int) -> int:
        """Allocate memory that GPU and CPU use at one address."""
        return self._pointer("cudaMallocManaged", size, _ATTACH_GLOBAL)

    def allocate_pinned(self, size: int) -> int:
        """Allocate memory of the host that is copied without a detour."""
        return self._pointer("cudaHostAlloc", size, 0)

    def free(self, address: int) -> None:
        """Free memory of the device, or managed memory."""
        self._call("cudaFree", address)

    def free_pinned(self, address: int) -> None:
        """Free pinned memory."""
        self._call("cudaFreeHost", address)

    def copy(self, to: int, source: int, size: int, direction: int, stream: int) -> None:
        """Copy bytes, in the order of the stream."""
        self._call("cudaMemcpyAsync", to, source, size, direction, stream)

    def new_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        return self._pointer("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """Record what follows in the stream instead of running it."""
        self._call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return what was recorded, ready to be launched.

        Raises:
            CudaError: if something was called meanwhile that cannot be recorded; the stream is usable again.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cudaGraphInstantiate", ctypes.byref(executable), graph.value, 0)
        self._call("cudaGraphDestroy", graph.value)
        return executable.value or 0

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed."""
        with suppress(CudaError):
            graph = ctypes.c_void_p()
            self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
            self._call("cudaGraphDestroy", graph.value)
        self._library.cudaGetLastError()

    def launch(self, executable: int, stream: int) -> None:
        """Run what was recorded."""
        self._call("cudaGraphLaunch", executable, stream)

    def destroy(self, executable: int) -> None:
        """Free what was recorded."""
        self._call("cudaGraphExecDestroy", executable)

    def _integer(self, function: str) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value))
        return value.value

    def _pointer(self, function: str, *arguments: int) -> int:
        value = ctypes.c_void_p()
        self._call(function, ctypes.byref(value), *arguments)
        return value.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raw = self._library.cudaGetErrorString(status)
            reason = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
            if function in ("cudaMalloc", "cudaMallocManaged", "cudaHostAlloc"):
                size = arguments[1]
                raise CudaError(
                    f"the device has no {size / 2**20:.0f} MiB of memory left ({reason}); close other programs that "
                    "use it, or build the engine for smaller sizes."
                )
            raise CudaError(f"{function} of CUDA failed with error {status}: {reason}.")


def open_cuda() -> Cuda:
    """Return the CUDA runtime that TensorRT has loaded, or else the installed one.

    Raises:
        BundleError: if there is none, or no device.
    """
    for name in [*_loaded_libraries(), *NAMES]:
        with suppress(OSError):
            return Cuda(_declare(ctypes.CDLL(name)))
    raise BundleError("the CUDA runtime (libcudart.so) is not installed; on a Jetson it comes with JetPack.")


def device_name(device: int) -> str:
    """Return the name of a GPU by its driver, or ``"unknown"``."""
    name = ctypes.create_string_buffer(256)
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        handle = ctypes.c_int()
        if not (driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device)):
            driver.cuDeviceGetName(name, len(name), handle)
    return name.value.decode(errors="replace") or "unknown"


def _loaded_libraries() -> list[str]:
    """Return the CUDA runtimes in this process: two copies of one would not share streams."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    return sorted(set(re.findall(r"/\S*libcudart\S*\.so[.\d]*", maps.read_text())))


def _declare(library: Any) -> Any:
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = (_INT,), ctypes.c_char_p
    return library
