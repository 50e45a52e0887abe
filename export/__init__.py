"""Models as files for devices: ONNX graphs, and the bundles that carry them with everything that proves them."""

if __name__ != "elastic.export":
    raise ImportError("import this package as `elastic.export`, not `export`")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import (
        bench_bundle,
        bench_subnets,
        compare_latency,
        open_session,
        read_bundle,
        run_bundle,
        verify_bundle,
    )
    from .elastic_onnx import ElasticReport, export_elastic
    from .embedder import Embedder
    from .family import FamilyReport, NamedSubnet, export_family
    from .onnx import ExportReport, export_onnx
    from .runtime.bench import BenchReport, ComparisonReport
    from .runtime.manifest import Manifest, Member
    from .runtime.members import Session
    from .runtime.verify import VerifyReport
    from .source import FamilySource, Source, read_source, read_universal

_HOMES = {
    "BenchReport": ".runtime.bench",
    "ComparisonReport": ".runtime.bench",
    "Embedder": ".embedder",
    "ElasticReport": ".elastic_onnx",
    "ExportReport": ".onnx",
    "FamilyReport": ".family",
    "FamilySource": ".source",
    "Manifest": ".runtime.manifest",
    "Member": ".runtime.manifest",
    "NamedSubnet": ".family",
    "Session": ".runtime.members",
    "Source": ".source",
    "VerifyReport": ".runtime.verify",
    "bench_bundle": ".bundle",
    "bench_subnets": ".bundle",
    "compare_latency": ".bundle",
    "export_elastic": ".elastic_onnx",
    "export_family": ".family",
    "export_onnx": ".onnx",
    "open_session": ".bundle",
    "read_bundle": ".bundle",
    "read_source": ".source",
    "read_universal": ".source",
    "run_bundle": ".bundle",
    "verify_bundle": ".bundle",
}

__all__ = [
    "BenchReport",
    "ComparisonReport",
    "ElasticReport",
    "Embedder",
    "ExportReport",
    "FamilyReport",
    "FamilySource",
    "Manifest",
    "Member",
    "NamedSubnet",
    "Session",
    "Source",
    "VerifyReport",
    "bench_bundle",
    "bench_subnets",
    "compare_latency",
    "export_elastic",
    "export_family",
    "export_onnx",
    "open_session",
    "read_bundle",
    "read_source",
    "read_universal",
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
