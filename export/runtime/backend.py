"""What runs the graphs of a bundle: ONNX Runtime, or TensorRT with the engines that were built on this device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cuda import Cuda
from .device import Device, open_device, open_tensorrt
from .engine import Identity, find_engine, has_engines, identify, other_devices, read_engine
from .engine_session import EngineSession, Scratch
from .errors import BundleError
from .manifest import Manifest, weights_of
from .ort import open_graph, runtime_version

ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = (ONNXRUNTIME, TENSORRT)


@dataclass(frozen=True)
class OnnxRuntime:
    """Runs graphs on the CPU."""

    threads: int | None = None
    spinning: bool = True
    name: str = ONNXRUNTIME

    @property
    def version(self) -> str:
        """Name and version of what runs the graphs."""
        return runtime_version()

    def has(self, folder: Path, manifest: Manifest) -> bool:
        """Whether the one graph of this manifest can be opened: any can."""
        return True

    def open(self, folder: Path, manifest: Manifest) -> Any:
        """Return a session for the one graph of this manifest."""
        return open_graph(folder / manifest.graph, threads=self.threads, spinning=self.spinning)


@dataclass(frozen=True)
class TensorRT:
    """Runs engines; those of one bundle share their scratch memory, since they run one after another."""

    trt: Any
    device: Device
    cuda: Cuda
    scratch: Scratch
    name: str = TENSORRT

    @property
    def version(self) -> str:
        """Name and version of what runs the engines."""
        return f"tensorrt {self.trt.__version__}"

    def has(self, folder: Path, manifest: Manifest) -> bool:
        """Whether an engine of the one graph of this manifest was built for this device."""
        return find_engine(folder, self._identify(manifest)) is not None

    def _identify(self, manifest: Manifest) -> Identity:
        return identify(manifest, self.device, weights_of(manifest))

    def open(self, folder: Path, manifest: Manifest) -> Any:
        """Return a session for the engine of the one graph of this manifest.

        Raises:
            BundleError: if there is no engine for this device (says which there are).
        """
        record = find_engine(folder, self._identify(manifest))
        if record is None:
            others = other_devices(folder, manifest.graph)
            there = f" (there are engines for {'; '.join(others)})" if others else ""
            raise BundleError(
                f"'{folder}' has no engine of {manifest.graph} for {self.device}{there}; build it with `python3 -m "
                "runtime build`, or run it with --backend onnxruntime."
            )
        weights = folder / manifest.graph if record.settings.get("stripped") else None
        plan = read_engine(folder, record)
        return EngineSession(self.trt, self.cuda, plan, manifest, weights=weights, scratch=self.scratch)


Backend = OnnxRuntime | TensorRT


def choose_backend(
    folder: Path, manifest: Manifest, name: str | None = None, *, threads: int | None = None, spinning: bool = True
) -> Backend:
    """Return the backend of this name; by default TensorRT where engines were built and it is installed.

    Raises:
        BundleError: if there is no such backend, it is not installed, or the bundle is not made for it.
    """
    if name not in (None, *BACKENDS):
        raise BundleError(f"there is no backend '{name}'; there are {' and '.join(BACKENDS)}.")
    if name == ONNXRUNTIME or (name is None and not (manifest.profiles and has_engines(folder))):
        return OnnxRuntime(threads, spinning)
    if not manifest.profiles:
        raise BundleError(f"'{folder}' is not for TensorRT; export it with `elastic export --to tensorrt`.")
    try:
        trt = open_tensorrt()
    except BundleError:
        if name is None:  # Engines came along from a device.
            return OnnxRuntime(threads, spinning)
        raise
    device, cuda = open_device(trt)
    return TensorRT(trt, device, cuda, Scratch(cuda))
