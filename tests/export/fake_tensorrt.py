"""A module that stands in for ``tensorrt``, and a CUDA runtime on host memory: enough to build and run engines here.

The fake has only the names that the runtime uses, records calls, and is as strict as the real one about order: an
engine runs if its profile, shapes, addresses and scratch memory were set. It computes with ONNX Runtime what is at
the addresses. It says nothing about what the real one accepts.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

NUMPY_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_}


class FakeCudart:
    """Implements the functions of ``libcudart.so`` that are used: memory is the host's, streams run at once."""

    def __init__(
        self, *, integrated: bool = False, memory: int = 1 << 30, capability: tuple[int, int] = (8, 7)
    ) -> None:
        self.attributes = {75: capability[0], 76: capability[1], 16: 8, 18: int(integrated)}
        self.limit, self.blocks, self.calls = memory, {}, []
        self.capturing, self.recorded, self.executables = False, [], {}
        self.fail_capture = False

    def __getattribute__(self, name):
        if name.startswith("cuda"):
            self.calls.append(name)
        return object.__getattribute__(self, name)

    def cudaGetErrorString(self, status):
        return {2: b"out of memory", 900: b"operation not permitted when stream is capturing"}.get(status, b"unknown")

    def cudaGetLastError(self):
        return 0

    def cudaGetDevice(self, value):
        value._obj.value = 0
        return 0

    def cudaDeviceGetAttribute(self, value, number, device):
        value._obj.value = self.attributes[number]
        return 0

    def cudaMemGetInfo(self, free, total):
        free._obj.value = total._obj.value = self.limit
        return 0

    def _allocate(self, value, size):
        if sum(block[1] for block in self.blocks.values()) + size > self.limit:
            return 2
        raw = ctypes.create_string_buffer(size)
        value._obj.value = ctypes.addressof(raw)
        self.blocks[ctypes.addressof(raw)] = (raw, size)
        return 0

    def cudaMalloc(self, value, size):
        return self._allocate(value, size)

    def cudaMallocManaged(self, value, size, flags):
        return self._allocate(value, size)

    def cudaHostAlloc(self, value, size, flags):
        return self._allocate(value, size)

    def cudaFree(self, address):
        del self.blocks[address]
        return 0

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, value, flags):
        value._obj.value = 7
        return 0

    def cudaStreamSynchronize(self, stream):
        return 900 if self.capturing else 0

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        return self.submit(lambda: ctypes.memmove(to, source, size))

    def submit(self, work):
        """Run something in the stream, or record it."""
        if self.capturing:
            self.recorded.append(work)
        else:
            work()
        return 0

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing, self.recorded = True, []
        return 0

    def cudaStreamEndCapture(self, stream, graph):
        self.capturing = False
        graph._obj.value = 11
        return 900 if self.fail_capture else 0

    def cudaGraphInstantiate(self, executable, graph, flags):
        executable._obj.value = 100 + len(self.executables)
        self.executables[executable._obj.value] = self.recorded
        return 0

    def cudaGraphDestroy(self, graph):
        return 0

    def cudaGraphLaunch(self, executable, stream):
        for work in self.executables[executable]:
            work()
        return 0

    def cudaGraphExecDestroy(self, executable):
        del self.executables[executable]
        return 0


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self):
        pass


class _Error:
    def __init__(self, description, operator="", name=""):
        self._values = description, operator, name

    def desc(self):
        return self._values[0]

    def node_operator(self):
        return self._values[1]

    def node_name(self):
        return self._values[2]


def make_module(cudart: FakeCudart, version: str = "10.3.0.30", **behaviour) -> types.ModuleType:  # noqa: C901 (a module is many small classes)
    """Return the module. ``behaviour``: ``no_gpu``, ``unread`` (operator), ``build_error``, ``wrong`` (outputs)."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.log = []  # what was called, with the arguments that matter
    trt.ILogger = ILogger
    trt.BuilderFlag = enum.Enum("BuilderFlag", "TF32 STRIP_PLAN REFIT_IDENTICAL")
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    trt.TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    trt.DataType = enum.Enum("DataType", "FLOAT HALF INT64 BOOL")
    trt.ExecutionContextAllocationStrategy = enum.Enum("Strategy", "STATIC USER_MANAGED")

    class Builder:
        def __init__(self, logger):
            self.logger = logger
            if behaviour.get("no_gpu"):
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35.")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags):
            trt.log.append(("network", flags))
            return types.SimpleNamespace(onnx=None)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            if text := behaviour.get("build_error"):
                self.logger.log(Severity.ERROR, text)
                return None
            stripped = trt.BuilderFlag.STRIP_PLAN in config.flags
            trt.log.append(("build", sorted(flag.name for flag in config.flags), config.limits, config.cache))
            plan = {
                "version": version,
                "onnx": None if stripped else network.onnx,
                "graph": network.onnx,
                "profiles": [profile.shapes for profile in config.profiles],
            }
            return json.dumps(plan).encode()

    class Config:
        def __init__(self):
            self.flags, self.limits, self.profiles, self.cache = {trt.BuilderFlag.TF32}, {}, [], None

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def set_flag(self, flag):
            self.flags.add(flag)

        def set_memory_pool_limit(self, pool, size):
            self.limits[pool.name] = size

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data):
            return types.SimpleNamespace(data=data)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            if cache.data not in (b"", b"timings"):
                return False
            self.cache = cache.data
            return True

        def get_timing_cache(self):
            return types.SimpleNamespace(serialize=lambda: b"timings")

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, low, opt, high):
            assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
            self.shapes[name] = [list(low), list(opt), list(high)]

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.errors = network, []

        @property
        def num_errors(self):
            return len(self.errors)

        def get_error(self, index):
            return self.errors[index]

        def parse_from_file(self, path):
            model = onnx.load(path, load_external_data=False)
            for node in model.graph.node:
                if node.op_type == behaviour.get("unread"):
                    self.errors.append(_Error("No importer registered for op.\nsecond line", node.op_type, node.name))
                    return False
            self.network.onnx = path
            return True

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            try:
                data = json.loads(plan)
            except ValueError:
                data = {"version": None}
            if data["version"] != version:
                self.logger.log(Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT.")
                return None
            return Engine(data)

    class Engine:
        def __init__(self, data):
            self.onnx, self.shapes = data["onnx"], data["profiles"]
            self.device_memory_size_v2 = 4096
            self.num_optimization_profiles = max(1, len(self.shapes))
            session = onnxruntime.InferenceSession(data["graph"])
            self.tensors = [(tensor, trt.TensorIOMode.INPUT) for tensor in session.get_inputs()]
            self.tensors += [(tensor, trt.TensorIOMode.OUTPUT) for tensor in session.get_outputs()]
            self.num_io_tensors = len(self.tensors)

        def get_tensor_name(self, index):
            return self.tensors[index][0].name

        def get_tensor_mode(self, name):
            return next(mode for tensor, mode in self.tensors if tensor.name == name)

        def get_tensor_dtype(self, name):
            return trt.DataType[next(NUMPY_TYPES[tensor.type] for tensor, _ in self.tensors if tensor.name == name)]

        def create_execution_context(self, strategy):
            assert strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return Context(self)

    class Context:
        def __init__(self, engine):
            self.engine, self.profile, self.shapes, self.addresses, self.scratch = engine, 0, {}, {}, 0
            self.session = onnxruntime.InferenceSession(engine.onnx) if engine.onnx else None

        def set_optimization_profile_async(self, index, stream):
            self.profile = index
            return index < len(self.engine.shapes)

        def set_tensor_address(self, name, address):
            self.addresses[name] = address
            return True

        def set_device_memory(self, address, size):
            assert size >= self.engine.device_memory_size_v2
            self.scratch = address

        def set_input_shape(self, name, shape):
            if self.engine.shapes and name in self.engine.shapes[self.profile]:
                low, _, high = self.engine.shapes[self.profile][name]
                if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                    return False
            self.shapes[name] = shape
            return True

        def infer_shapes(self):
            return [tensor.name for tensor in self.session.get_inputs() if tensor.name not in self.shapes]

        def get_tensor_shape(self, name):
            sizes = {}
            for tensor in self.session.get_inputs():
                sizes.update(zip(tensor.shape, self.shapes[tensor.name], strict=True))
            tensor = next(tensor for tensor, _ in self.engine.tensors if tensor.name == name)
            return tuple(sizes.get(dim, dim) for dim in tensor.shape)

        def execute_async_v3(self, stream):
            assert self.scratch, "no scratch memory was set"
            trt.log.append(("execute", self.profile, dict(self.shapes)))
            return cudart.submit(self._compute) == 0

        def _compute(self):
            inputs = {tensor.name: self._at(tensor.name) for tensor in self.session.get_inputs()}
            for tensor, array in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
                self._at(tensor.name)[...] = array + (1 if behaviour.get("wrong") else 0)

        def _at(self, name):
            dtype = np.dtype(DTYPES[self.engine.get_tensor_dtype(name).name])
            shape = self.get_tensor_shape(name)
            raw = (ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)).from_address(self.addresses[name])
            return np.ndarray(shape, dtype=dtype, buffer=raw)

    class Refitter:
        def __init__(self, engine, logger):
            self.engine, self.path = engine, None

        def get_missing_weights(self):
            return [] if self.path else ["a.weight"]

        def refit_cuda_engine(self):
            self.engine.onnx = self.path
            return self.path is not None

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            self.refitter = refitter

        def refit_from_file(self, path):
            trt.log.append(("refit", Path(path).name))
            self.refitter.path = None if behaviour.get("unrefittable") else path
            return self.refitter.path is not None

    for known in (Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter):
        setattr(trt, known.__name__, known)
    return trt
