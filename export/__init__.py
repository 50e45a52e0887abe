"""Models as files for devices: ONNX graphs, and the bundles that carry them with everything that proves them."""

if __name__ != "elastic.export":
    raise ImportError("import this package as `elastic.export`, not `export`")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import bench_bundle, compare_latency, read_bundle, run_bundle, verify_bundle
    from .embedder import Embedder
    from .onnx import ExportReport, export_onnx
    from .precision.calibration import CalibrationData, calibration_data, calibration_of_task
    from .precision.options import Drop, PrecisionOptions
    from .runtime.bench import BenchReport, ComparisonReport
    from .runtime.manifest import Manifest
    from .runtime.verify import VerifyReport
    from .source import Source, read_source

_HOMES = {
    "BenchReport": ".runtime.bench",
    "CalibrationData": ".precision.calibration",
    "ComparisonReport": ".runtime.bench",
    "Drop": ".precision.options",
    "Embedder": ".embedder",
    "ExportReport": ".onnx",
    "Manifest": ".runtime.manifest",
    "PrecisionOptions": ".precision.options",
    "Source": ".source",
    "VerifyReport": ".runtime.verify",
    "bench_bundle": ".bundle",
    "calibration_data": ".precision.calibration",
    "calibration_of_task": ".precision.calibration",
    "compare_latency": ".bundle",
    "export_onnx": ".onnx",
    "read_bundle": ".bundle",
    "read_source": ".source",
    "run_bundle": ".bundle",
    "verify_bundle": ".bundle",
}

__all__ = [
    "BenchReport",
    "CalibrationData",
    "ComparisonReport",
    "Drop",
    "Embedder",
    "ExportReport",
    "Manifest",
    "PrecisionOptions",
    "Source",
    "VerifyReport",
    "bench_bundle",
    "calibration_data",
    "calibration_of_task",
    "compare_latency",
    "export_onnx",
    "read_bundle",
    "read_source",
    "run_bundle",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that looking at a bundle does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elastic.export' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
