"""Runs an engine: the profile that fits, buffers that stay where they are, and CUDA graphs for fixed sizes."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cuda import DEVICE_TO_HOST, HOST_TO_DEVICE, Cuda, CudaError
from .device import new_logger
from .errors import BundleError, VerificationError
from .manifest import DERIVED_SIZES, MAY_BE_ZERO, Manifest, Profile, TensorSpec

Array = np.ndarray[Any, Any]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
          "UINT8": "uint8"}  # fmt: skip
"""NumPy's names of TensorRT's types."""

SMALLEST = 256
"""Bytes of the smallest buffer: TensorRT wants an address for an empty tensor as well."""


@dataclass
class Buffer:
    """Memory of one input or output, at one address for the life of a session."""

    cuda: Cuda
    size: int
    host: int = 0
    device: int = 0

    def __post_init__(self) -> None:
        if self.cuda.integrated:
            # A Jetson's GPU reads what the CPU wrote: nothing is copied.
            self.host = self.device = self.cuda.allocate_managed(self.size)
        else:
            self.host, self.device = self.cuda.allocate_pinned(self.size), self.cuda.allocate(self.size)

    def array(self, dtype: str, shape: Sequence[int]) -> Array:
        """Return the beginning of the buffer, as the host sees it."""
        count = math.prod(shape)
        if count == 0:
            return np.zeros(shape, dtype=dtype)
        raw: Any = (ctypes.c_byte * (count * np.dtype(dtype).itemsize)).from_address(self.host)
        return np.ndarray(shape, dtype=dtype, buffer=raw)

    def close(self) -> None:
        """Free the memory."""
        if self.device != self.host:
            self.cuda.free_pinned(self.host)
        self.cuda.free(self.device)


@dataclass
class Scratch:
    """The memory that engines compute in. Engines that run one after another share one."""

    cuda: Cuda
    address: int = 0
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while an engine runs in it."""

    def reserve(self, size: int) -> None:
        """Make it at least this large; what was captured with it before must be captured again."""
        if size > self.size:
            self.close()
            self.address, self.size = self.cuda.allocate(size), size

    def close(self) -> None:
        """Free the memory."""
        if self.address:
            self.cuda.free(self.address)
        self.address, self.size = 0, 0


@dataclass
class Context:
    """One execution context for one profile, and what was captured of it."""

    handle: Any
    profile: Profile
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scratch: int = 0
    """The address of the scratch memory that it was told."""
    runs: int = 0
    """With these shapes."""
    graph: int = 0
    """A CUDA graph of these shapes, if it was captured."""
    capturable: bool = True


class EngineSession:
    """A loaded engine with the interface of an ``onnxruntime.InferenceSession``. One call runs at a time."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        plan: bytes,
        manifest: Manifest,
        *,
        weights: Path | None = None,
        scratch: Scratch | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Load a plan.

        Args:
            trt: the module ``tensorrt``.
            cuda: the CUDA runtime.
            plan: the serialized engine.
            manifest: of the one graph that was built.
            weights: the ONNX file that a plan without weights is completed from.
            scratch: memory to share with other engines.
            cuda_graphs: whether profiles of one size are launched as CUDA graphs.

        Raises:
            BundleError: if TensorRT does not take the plan, or memory is too small.
            VerificationError: if the engine is not one of this graph.
        """
        self._trt, self._cuda, self._manifest = trt, cuda, manifest
        self._logger = new_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(f"TensorRT {trt.__version__} does not load this engine{self._reason()}; build it again.")
        if weights is not None:
            self._refit(weights)
        self._profiles = manifest.profiles
        self._check_tensors()
        self._stream = cuda.new_stream()
        self._own_scratch = scratch is None
        self._scratch = scratch or Scratch(cuda)
        self._scratch.reserve(max(self._engine.device_memory_size_v2, SMALLEST))
        self._buffers = {spec.name: Buffer(cuda, self._largest(spec)) for spec in self._specs}
        self._contexts: dict[int, Context] = {}
        self._cuda_graphs = cuda_graphs
        self._pad_id = int((manifest.preprocess or {}).get("pad_id", 0))

    @property
    def _specs(self) -> tuple[TensorSpec, ...]:
        return (*self._manifest.inputs, *self._manifest.outputs)

    def get_inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs, which have names."""
        return self._manifest.inputs

    def get_outputs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs, which have names."""
        return self._manifest.outputs

    def run(self, names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Run the engine; inputs smaller than every profile are padded, and the outputs cut back.

        Raises:
            BundleError: if no profile takes the inputs, or the device fails.
        """
        sizes = _sizes(self._manifest.inputs, inputs)
        index, target = choose_profile(self._profiles, sizes)
        with self._scratch.lock:
            context = self._context(index)
            self._set_shapes(context, target)
            for spec in self._manifest.inputs:
                array = pad(spec, inputs[spec.name], target, self._pad_id if spec.name == "input_ids" else 0)
                self._buffers[spec.name].array(spec.dtype, array.shape)[...] = array
            self._execute(context)
            outputs = {}
            for spec in self._manifest.outputs:
                shape = tuple(target[dim] if isinstance(dim, str) else dim for dim in spec.shape)
                kept = tuple(slice(sizes[dim] if isinstance(dim, str) else None) for dim in spec.shape)
                outputs[spec.name] = self._buffers[spec.name].array(spec.dtype, shape)[kept].copy()
        return [outputs[name] for name in names]

    def close(self) -> None:
        """Free the memory of the device; the session is not usable afterwards."""
        for context in self._contexts.values():
            self._drop_graph(context)
        self._contexts.clear()
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        if self._own_scratch:
            self._scratch.close()

    def _refit(self, weights: Path) -> None:
        refitter = self._trt.Refitter(self._engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            missing = list(refitter.get_missing_weights())
            what = f", '{missing[0]}' among others is missing" if missing else ""
            raise BundleError(
                f"the engine does not take the weights of '{weights}'{what}{self._reason()}; build it again."
            )

    def _check_tensors(self) -> None:
        engine, found = self._engine, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            side = "input" if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT else "output"
            found[name] = (side, DTYPES.get(engine.get_tensor_dtype(name).name, "unknown"))
        expected = {spec.name: ("input", spec.dtype) for spec in self._manifest.inputs}
        expected |= {spec.name: ("output", spec.dtype) for spec in self._manifest.outputs}
        if found != expected:
            raise VerificationError(f"the engine has the inputs and outputs {found}, and the manifest says {expected}.")
        free = any(isinstance(dim, str) for spec in self._manifest.inputs for dim in spec.shape)
        if free and engine.num_optimization_profiles != len(self._profiles):
            raise VerificationError(
                f"the engine has {engine.num_optimization_profiles} profiles, and the manifest {len(self._profiles)}."
            )

    def _largest(self, spec: TensorSpec) -> int:
        count = max(math.prod(profile.shape(spec, "max")) for profile in self._profiles)
        return max(count * np.dtype(spec.dtype).itemsize, SMALLEST)

    def _context(self, index: int) -> Context:
        if index not in self._contexts:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            handle = self._engine.create_execution_context(strategy)
            if handle is None:
                raise BundleError(f"TensorRT cannot run this engine{self._reason()}")
            if index and not handle.set_optimization_profile_async(index, self._stream):
                raise BundleError(f"TensorRT does not switch to profile {index} of this engine{self._reason()}")
            self._cuda.synchronize(self._stream)
            for name, buffer in self._buffers.items():
                handle.set_tensor_address(name, buffer.device)
            self._contexts[index] = Context(handle, self._profiles[index])
        context = self._contexts[index]
        if context.scratch != self._scratch.address:
            self._drop_graph(context)
            context.handle.set_device_memory(self._scratch.address, self._scratch.size)
            context.scratch = self._scratch.address
        return context

    def _set_shapes(self, context: Context, sizes: Mapping[str, int]) -> None:
        shapes = {
            spec.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
            for spec in self._manifest.inputs
        }
        if shapes == context.shapes:
            return
        self._drop_graph(context)
        for name, shape in shapes.items():
            if not context.handle.set_input_shape(name, shape):
                raise BundleError(f"the engine does not take '{name}' of shape {shape}{self._reason()}")
        if missing := context.handle.infer_shapes():
            raise BundleError(f"the engine does not know the shape of '{missing[0]}'{self._reason()}")
        context.shapes = shapes

    def _execute(self, context: Context) -> None:
        if context.graph:
            self._cuda.launch(context.graph, self._stream)
        else:
            # TensorRT allocates in the first run, which cannot be captured.
            if self._cuda_graphs and context.profile.fixed and context.capturable and context.runs == 1:
                self._capture(context)
            if context.graph:
                self._cuda.launch(context.graph, self._stream)
            else:
                self._enqueue(context)
        context.runs += 1
        self._cuda.synchronize(self._stream)

    def _enqueue(self, context: Context) -> None:
        for spec in self._manifest.inputs:
            self._copy(spec, context, HOST_TO_DEVICE)
        if not context.handle.execute_async_v3(self._stream):
            raise BundleError(f"the engine failed{self._reason()}")
        for spec in self._manifest.outputs:
            self._copy(spec, context, DEVICE_TO_HOST)

    def _copy(self, spec: TensorSpec, context: Context, direction: int) -> None:
        buffer = self._buffers[spec.name]
        size = math.prod(context.handle.get_tensor_shape(spec.name)) * np.dtype(spec.dtype).itemsize
        if buffer.host == buffer.device or size == 0:
            return
        ends = (buffer.device, buffer.host) if direction == HOST_TO_DEVICE else (buffer.host, buffer.device)
        self._cuda.copy(*ends, size, direction, self._stream)

    def _capture(self, context: Context) -> None:
        """Record a run; where TensorRT has something in it that cannot be recorded, runs stay as they were."""
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue(context)
            context.graph = self._cuda.end_capture(self._stream)
        except (BundleError, CudaError):
            self._cuda.abandon_capture(self._stream)
            self._logger.errors.clear()
            context.capturable = False

    def _drop_graph(self, context: Context) -> None:
        if context.graph:
            self._cuda.destroy(context.graph)
        context.graph, context.runs = 0, 0

    def _reason(self) -> str:
        errors, self._logger.errors = self._logger.errors, []
        return f" ({errors[0].splitlines()[0].rstrip('.')})." if errors else "."


def choose_profile(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the profile that takes inputs of these sizes with the least padding, and the sizes it runs them at.

    Rows and, without a cache, columns of a text may be padded up to what a profile takes at least.

    Raises:
        BundleError: if none takes them (lists the profiles).
    """
    may_grow = () if any(name in sizes for name in (*MAY_BE_ZERO, *DERIVED_SIZES)) else ("sequence",)
    found = []
    for index, profile in enumerate(profiles):
        target = {name: max(size, profile.min[name]) for name, size in sizes.items()}
        if all(
            target[name] <= profile.max[name] and (target[name] == size or name in ("batch", *may_grow))
            for name, size in sizes.items()
        ):
            distance = sum(abs(target[name] - profile.opt[name]) for name in target)
            found.append((math.prod(size for size in target.values() if size), distance, index, target))
    if not found:
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise BundleError(
            f"no profile of this engine takes {wanted}; it has {'; '.join(map(str, profiles))} (export with --profile "
            "for others)."
        )
    return min(found, key=lambda one: one[:3])[2:]


def pad(spec: TensorSpec, array: Array, target: Mapping[str, int], value: int = 0) -> Array:
    """Return the array at these sizes: further rows repeat the first, further columns have the given value."""
    for axis, dim in enumerate(spec.shape):
        missing = target[dim] - array.shape[axis] if isinstance(dim, str) else 0
        if missing:
            if dim == "batch":
                more = np.repeat(array[:1], missing, axis=0)
            else:
                shape = [missing if other == axis else size for other, size in enumerate(array.shape)]
                more = np.full(shape, value, dtype=array.dtype)
            array = np.concatenate([array, more], axis=axis)
    return array


def _sizes(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> dict[str, int]:
    return {
        dim: size
        for spec in specs
        for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
