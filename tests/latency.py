"""Latency tables of devices that do not exist, with latencies that are known exactly."""

from __future__ import annotations

import json
from pathlib import Path

from elastic.cost import LatencyTable
from elastic.space import Subnet


def true_ms(subnet: Subnet) -> float:
    """A base, a little for each sub-layer that is there, and something for each head and neuron."""
    attention = sum(0.5 + 0.2 * heads for heads in subnet.heads if heads)
    return 1.0 + attention + sum(0.3 + 0.01 * width for width in subnet.ffn if width)


def one_axis_each(space) -> list[Subnet]:
    axes = ("ffn", "heads", "layers", "attention", "mlp")
    return list(dict.fromkeys(space.uniform(**{axis: c}) for axis in axes for c in reversed(getattr(space, axis))))


def write_table(path: Path, subnets, inputs, *, energy=True, **changes) -> Path:
    rows = [
        {
            "name": str(index),
            "subnet": subnet.to_dict(),
            "sizes": {"batch": 1},
            "inputs": {name: list(shape) for name, shape in inputs.items()},
            "median_ms": true_ms(subnet),
            "p10_ms": 0.9 * true_ms(subnet),
            "p90_ms": 1.1 * true_ms(subnet),
            "energy_mj": 5 * true_ms(subnet) if energy else None,
        }
        for index, subnet in enumerate(subnets)
    ]
    table = {
        "format_version": 1,
        "device": {"name": "Toaster 3000", "machine": "toast", "system": "none", "cpus": 1, "runtime": "made up 1.0"},
        "model_type": "vit",
        "precision": "fp32",
        "threads": 1,
        "rounds": 50,
        "measured": rows,
    }
    path.write_text(json.dumps({**table, **changes}))
    return path


def read_table(path: Path, subnets, inputs, **changes) -> LatencyTable:
    return LatencyTable.read(write_table(path, subnets, inputs, **changes))
