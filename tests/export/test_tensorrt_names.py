"""What the runtime uses of TensorRT's Python API exists from 10.3 to 11, by a list that is kept by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import elastic.export.runtime
from tests.export.fake_tensorrt import FakeCudart, make_module

FIRST, LAST = (10, 3), (11, 4)

# Name: first and last version that has it, as read from the published bindings 10.3.0, 10.13.3.9 and 11.4.0.106.
# None is "before 10.3", or "still in 11.4".
NAMES: dict[str, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    "Builder": (None, None),
    "BuilderFlag.REFIT_IDENTICAL": (None, None),
    "BuilderFlag.STRIP_PLAN": (None, None),
    "BuilderFlag.TF32": (None, None),
    "ExecutionContextAllocationStrategy.USER_MANAGED": (None, None),
    "ILogger": (None, None),
    "ILogger.__init__": (None, None),
    "ILogger.Severity.ERROR": (None, None),
    "ILogger.Severity.INTERNAL_ERROR": (None, None),
    "MemoryPoolType.WORKSPACE": (None, None),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (None, None),
    "OnnxParser": (None, None),
    "OnnxParserRefitter": (None, None),
    "Refitter": (None, None),
    "Runtime": (None, None),
    "TensorIOMode.INPUT": (None, None),
    "__version__": (None, None),
    # Gone, or new: nothing may use them.
    "BuilderFlag.BF16": (None, (10, 16)),
    "BuilderFlag.FP16": (None, (10, 16)),
    "BuilderFlag.INT8": (None, (10, 16)),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (None, (10, 16)),
}

# The same for what is called on TensorRT's objects.
MEMBERS: dict[str, tuple[str, ...]] = {
    "Builder": (
        "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
    ),
    "IBuilderConfig": (
        "clear_flag", "set_flag", "set_memory_pool_limit", "create_timing_cache", "set_timing_cache",
        "get_timing_cache", "add_optimization_profile",
    ),
    "ICudaEngine": (
        "create_execution_context", "device_memory_size_v2", "num_io_tensors", "num_optimization_profiles",
        "get_tensor_name", "get_tensor_mode", "get_tensor_dtype",
    ),
    "IExecutionContext": (
        "set_optimization_profile_async", "set_tensor_address", "set_device_memory", "set_input_shape", "infer_shapes",
        "get_tensor_shape", "execute_async_v3",
    ),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "OnnxParserRefitter": ("refit_from_file",),
    "ParserError": ("desc", "node_name", "node_operator"),
    "Refitter": ("refit_cuda_engine", "get_missing_weights"),
    "Runtime": ("deserialize_cuda_engine",),
}  # fmt: skip

REMOVED = (
    "create_execution_context_without_device_memory", "device_memory_size", "set_output_type", "supports_model",
    "int8_calibrator", "execute_v2", "weight_streaming_budget",
)  # fmt: skip
"""Members of 10.3 that 11 does not have, or that are older forms of what is used."""

RUNTIME = Path(elastic.export.runtime.__file__).parent


def used_names(source: str) -> set[str]:
    """Return the longest chains ``trt.X.Y`` in a source."""
    chains = set()
    inner: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts, value = [], node
        while isinstance(value, ast.Attribute):
            inner.add(id(value))
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and value.id in ("trt", "tensorrt"):
            chains.add(".".join(reversed(parts)))
        elif isinstance(value, ast.Name) and value.id == "self" and parts[-1] == "_trt":
            chains.add(".".join(reversed(parts[:-1])))
    return chains - {""}


def attributes(source: str) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}


def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in RUNTIME.glob("*.py")}


def test_every_name_exists_from_10_3_to_11():
    used = set().union(*(used_names(source) for source in sources().values()))
    assert len(used) > 10
    for name in used:
        assert name in NAMES, f"look up since when TensorRT has '{name}', and list it"
        first, last = NAMES[name]
        assert first is None or first <= FIRST, f"{name} came with {first}"
        assert last is None or last >= LAST, f"{name} was gone after {last}"


def test_the_walk_sees_what_is_gone():
    found = used_names("config.set_flag(trt.BuilderFlag.FP16)\nself._trt.Runtime(1)\nx.trt.y")
    assert found == {"BuilderFlag.FP16", "Runtime"}
    assert NAMES["BuilderFlag.FP16"][1] < LAST


def test_listed_members_are_used_and_removed_ones_are_not():
    used = set().union(*(attributes(source) for source in sources().values()))
    for owner, members in MEMBERS.items():
        assert set(members) <= used, f"{owner}: {sorted(set(members) - used)} is listed and not used"
    assert not used & set(REMOVED)


@pytest.mark.parametrize("name", sorted(name for name, (_, last) in NAMES.items() if last is None))
def test_the_stand_in_has_what_the_list_has(name):
    value = make_module(FakeCudart())
    for part in name.split("."):
        value = getattr(value, part)
