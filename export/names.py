"""Names of weights that the tracer stored transposed, and so without a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnxscript import ir
from torch import nn

Array = np.ndarray[Any, Any]

TRANSPOSED = ".weight.T"
"""How the names of transposed weights end."""

_PROBES = 16


def name_transposed_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Name every transposed weight of a linear layer after the layer: ``encoder.layer.0.output.dense.weight.T``."""
    taken = {name for name in graph.initializers if name}
    named: dict[tuple[Any, ...], list[tuple[str, Array]]] = {}
    for name, weight in _linear_weights(model):
        named.setdefault(_probe(weight.T), []).append((name, weight.T))
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT or "." in (value.name or ""):
            continue
        array = tensor.numpy()
        for name, weight in named.get(_probe(array), ()):
            if name not in taken and np.array_equal(array, weight):
                value.name = name
                tensor.name = name
                taken.add(name)
                break


def _linear_weights(model: nn.Module) -> Iterator[tuple[str, Array]]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(module, nn.Embedding):
            yield f"{name}{TRANSPOSED}".removeprefix("transformer."), weight.detach().cpu().numpy()


def _probe(matrix: Array) -> tuple[Any, ...]:
    """Return the size and a few values, which no two weights share by chance."""
    rows, columns = matrix.shape
    index = np.linspace(0, 1, _PROBES)
    values = matrix[(index * (rows - 1)).astype(int), (index * (columns - 1)).astype(int)]
    return rows, columns, values.tobytes()
