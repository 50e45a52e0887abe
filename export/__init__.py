"""Models as files for devices: ONNX graphs, and the bundles that carry them with everything that proves them."""

if __name__ != "elastic.export":
    raise ImportError("import this package as `elastic.export`, not `export`")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import (
        bench_bundle,
        bench_subnets,
        build_bundle,
        compare_latency,
        open_session,
        profile_bundles,
        read_bundle,
        run_bundle,
        verify_bundle,
    )
    from .elastic_onnx import ElasticReport, export_elastic
    from .embedder import Embedder
    from .family import FamilyReport, NamedSubnet, export_family
    from .lowered import LoweredQuality
    from .onnx import ExportReport, export_onnx
    from .precision.calibration import CalibrationData, calibration_data, calibration_of_task
    from .precision.options import Drop, PrecisionOptions
    from .runtime.bench import BenchReport, ComparisonReport
    from .runtime.build import BuildReport
    from .runtime.manifest import Manifest, Member
    from .runtime.members import Session
    from .runtime.verify import VerifyReport
    from .source import FamilySource, Source, read_source, read_universal
    from .tensorrt import TensorRTTarget, lint_for_tensorrt
    from .triton import write_triton

_HOMES = {
    "BenchReport": ".runtime.bench",
    "BuildReport": ".runtime.build",
    "CalibrationData": ".precision.calibration",
    "ComparisonReport": ".runtime.bench",
    "Drop": ".precision.options",
    "ElasticReport": ".elastic_onnx",
    "Embedder": ".embedder",
    "ExportReport": ".onnx",
    "FamilyReport": ".family",
    "FamilySource": ".source",
    "LoweredQuality": ".lowered",
    "Manifest": ".runtime.manifest",
    "Member": ".runtime.manifest",
    "NamedSubnet": ".family",
    "PrecisionOptions": ".precision.options",
    "Session": ".runtime.members",
    "Source": ".source",
    "TensorRTTarget": ".tensorrt",
    "VerifyReport": ".runtime.verify",
    "bench_bundle": ".bundle",
    "bench_subnets": ".bundle",
    "build_bundle": ".bundle",
    "calibration_data": ".precision.calibration",
    "calibration_of_task": ".precision.calibration",
    "compare_latency": ".bundle",
    "export_elastic": ".elastic_onnx",
    "export_family": ".family",
    "export_onnx": ".onnx",
    "lint_for_tensorrt": ".tensorrt",
    "open_session": ".bundle",
    "profile_bundles": ".bundle",
    "read_bundle": ".bundle",
    "read_source": ".source",
    "read_universal": ".source",
    "run_bundle": ".bundle",
    "verify_bundle": ".bundle",
    "write_triton": ".triton",
}

__all__ = [
    "BenchReport",
    "BuildReport",
    "CalibrationData",
    "ComparisonReport",
    "Drop",
    "ElasticReport",
    "Embedder",
    "ExportReport",
    "FamilyReport",
    "FamilySource",
    "LoweredQuality",
    "Manifest",
    "Member",
    "NamedSubnet",
    "PrecisionOptions",
    "Session",
    "Source",
    "TensorRTTarget",
    "VerifyReport",
    "bench_bundle",
    "bench_subnets",
    "build_bundle",
    "calibration_data",
    "calibration_of_task",
    "compare_latency",
    "export_elastic",
    "export_family",
    "export_onnx",
    "lint_for_tensorrt",
    "open_session",
    "profile_bundles",
    "read_bundle",
    "read_source",
    "read_universal",
    "run_bundle",
    "verify_bundle",
    "write_triton",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that looking at a bundle does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elastic.export' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
