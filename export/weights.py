"""One file of weights for many graphs: a tensor that is the beginning of another one lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from onnxscript import ir

WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 64
"""Bytes to which offsets are rounded up: a cache line."""
MIN_BYTES = 1024
"""Smaller tensors stay in the graph, where shapes must be: ONNX reads them to infer others."""
_KEY_BYTES = 256


@dataclass
class SharedWeights:
    """Regions of an open file, found by their content."""

    file: BinaryIO
    stored_bytes: int = 0
    referenced_bytes: int = 0
    """Of all tensors that were put, as they would be without sharing."""
    _regions: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)

    def put(self, data: bytes) -> int:
        """Return the offset of these bytes, which are written unless they are the beginning of what is there.

        Put larger tensors first: what is longer than what it begins with is written again.
        """
        self.referenced_bytes += len(data)
        regions = self._regions.setdefault(hashlib.blake2b(data[:_KEY_BYTES], digest_size=16).digest(), [])
        for offset, length in regions:
            if len(data) <= length and self._begins_with(offset, data):
                return offset
        offset = -(-self.stored_bytes // ALIGNMENT) * ALIGNMENT
        self.file.seek(offset)
        self.file.write(data)
        self.stored_bytes = offset + len(data)
        regions.append((offset, len(data)))
        return offset

    def _begins_with(self, offset: int, data: bytes) -> bool:
        self.file.seek(offset)
        return self.file.read(len(data)) == data


def share_weights(models: Iterable[ir.Model], folder: Path) -> SharedWeights:
    """Move the large tensors of all graphs into one file of a folder, and let the graphs refer to it.

    Any tensor of the file that a graph has was compared with the graph's own, byte for byte.
    """
    values = [v for model in models for v in model.graph.initializers.values() if v.const_value is not None]
    large = []
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= MIN_BYTES:
            large.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
    with (folder / WEIGHTS_FILE).open("w+b") as file:
        shared = SharedWeights(file)
        for value in sorted(large, key=lambda value: -value.const_value.nbytes):  # type: ignore[union-attr]
            tensor = value.const_value
            assert tensor is not None and value.name is not None
            offset = shared.put(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                WEIGHTS_FILE,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name,
                base_dir=folder,
            )
    return shared
