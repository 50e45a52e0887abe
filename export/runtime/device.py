"""The device that an engine is built on and runs on: TensorRT, CUDA, and what an engine depends on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cuda import COMPUTE_CAPABILITY, MULTIPROCESSORS, Cuda, device_name, open_cuda
from .errors import BundleError

OLDEST = (10, 3)
"""The first TensorRT whose names this code uses: that of JetPack 6."""

_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Device:
    """What an engine is bound to: it runs on such a device with exactly this TensorRT, and nowhere else."""

    name: str
    compute_capability: str
    multiprocessors: int
    tensorrt: str
    platform: str
    """The release of Linux for Tegra on a Jetson (R36.4.0 is JetPack 6.1), empty elsewhere."""

    def __str__(self) -> str:
        platform = f", {self.platform}" if self.platform else ""
        return f"{self.name} (compute capability {self.compute_capability}{platform}) with TensorRT {self.tensorrt}"


def open_tensorrt() -> Any:
    """Return the module ``tensorrt``.

    Raises:
        BundleError: if it is not installed, or too old.
    """
    try:
        import tensorrt  # type: ignore[import-not-found]
    except ImportError as error:
        if error.name != "tensorrt":
            raise BundleError(f"TensorRT cannot be loaded: {error}.") from None
        raise BundleError(
            "TensorRT is not installed for this Python; on a Jetson, `sudo apt install python3-libnvinfer`, and use "
            "the system's python3."
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", tensorrt.__version__)[:2])
    if version < OLDEST:
        raise BundleError(
            f"TensorRT {tensorrt.__version__} is too old; {OLDEST[0]}.{OLDEST[1]} (JetPack 6) or later is needed."
        )
    return tensorrt


def open_device(trt: Any) -> tuple[Device, Cuda]:
    """Return the current device, and the CUDA runtime.

    Raises:
        BundleError: if there is no CUDA, or no device.
    """
    cuda = open_cuda()
    major, minor = (cuda.attribute(number) for number in COMPUTE_CAPABILITY)
    device = Device(
        name=device_name(cuda.device),
        compute_capability=f"{major}.{minor}",
        multiprocessors=cuda.attribute(MULTIPROCESSORS),
        tensorrt=trt.__version__,
        platform=tegra_release(),
    )
    return device, cuda


def tegra_release(path: Path = _RELEASE) -> str:
    """Return the release of Linux for Tegra, such as ``R36.4.0``, or nothing on other machines."""
    if not path.is_file():
        return ""
    found = re.search(r"R(\d+)[^,]*,\s*REVISION:\s*([\d.]+)", path.read_text(errors="replace"))
    return f"R{found[1]}.{found[2]}" if found else "Tegra"


def new_logger(trt: Any) -> Any:
    """Return a logger that keeps TensorRT's errors in ``errors``, and is silent otherwise."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
