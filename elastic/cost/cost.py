"""What a subnet costs, and for which input: FLOPs, parameters, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

InputShapes = Mapping[str, tuple[int, ...]]
"""Input name to shape, batch first: ``{"input_ids": (1, 128)}``."""


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass of one subnet at stated input shapes."""

    flops: int
    """As `torch.utils.flop_counter` counts: 2 per multiply-add, unfused (eager) attention."""
    params: int
    weight_bytes: int
    """Parameters in the model's data type."""
    activation_bytes: int
    """Largest sum of activations alive at once, in an eager forward pass without gradients."""
    input_shapes: InputShapes
    cache_bytes: int = 0
    """Keys and values of a decoder after the pass; 0 without a cache."""
    phase: Mapping[str, Any] | None = None
    """Of a decoder with a cache: the phase, and its context in tokens."""

    latency_ms: float | None = None
    """Predicted from a latency table; None without one."""
    energy_mj: float | None = None
    """Millijoules of one inference, predicted from a table of a device that can read its power."""
    device: str | None = None
    """Whose latency and energy these are, with threads and precision."""

    @property
    def macs(self) -> int:
        """Multiply-adds: half of the FLOPs."""
        return self.flops // 2

    @property
    def memory_bytes(self) -> int:
        """Weights, activations and key-value cache together."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, input shapes included."""
        return {
            "flops": self.flops,
            "macs": self.macs,
            "params": self.params,
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
            "memory_bytes": self.memory_bytes,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            **({"cache_bytes": self.cache_bytes, "phase": dict(self.phase)} if self.phase else {}),
            **({} if self.latency_ms is None else {"latency_ms": self.latency_ms, "device": self.device}),
            **({} if self.energy_mj is None else {"energy_mj": self.energy_mj}),
        }
