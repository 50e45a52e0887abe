"""Safetensors files written piece by piece: the library's own writer wants every tensor in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of every tensor of a file."""

T = TypeVar("T")


def make_header(layout: Layout) -> tuple[bytes, list[str]]:
    """Return the first bytes of a file, and the names of its tensors in the order in which their data follow.

    Order and names of types are those that the library gives to empty tensors of these types.
    """
    empty = save({name: torch.empty(0, dtype=dtype) for name, (dtype, _) in layout.items()}, metadata={"format": "pt"})
    header = json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")])
    names = [name for name in header if name != "__metadata__"]
    offset = 0
    for name in names:
        dtype, shape = layout[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name].update(shape=list(shape), data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def write_file(
    path: Path,
    layout: Layout,
    read: Callable[[str], Iterable[torch.Tensor]],
    on_bytes: Callable[[int], None] = lambda count: None,
) -> str:
    """Write a safetensors file, and return its hex sha256.

    Args:
        path: file to write.
        layout: types and shapes.
        read: gives the data of a tensor, in row-major order, as contiguous pieces of its type.
        on_bytes: called with the number of bytes of every piece that has been written.

    Raises:
        OSError: if the disk is full, or the file cannot be written.
        ValueError: if ``read`` gives more or less than the layout says.
    """
    header, names = make_header(layout)
    digest = hashlib.sha256(header)
    left = {name: dtype.itemsize * torch.Size(shape).numel() for name, (dtype, shape) in layout.items()}
    # Reading, hashing and writing take about as long as each other, and release the interpreter's lock.
    with path.open("wb") as file, ThreadPoolExecutor(1) as other:
        hashed: Future[None] | None = None
        file.write(header)
        for name, piece in _ahead((of, piece) for of in names for piece in read(of)):
            data = piece.reshape(-1).view(torch.uint8).numpy().data
            if hashed is not None:
                hashed.result()
            hashed = other.submit(digest.update, data)
            file.write(data)
            left[name] -= len(data)
            on_bytes(len(data))
        if hashed is not None:
            hashed.result()
    for name, num_bytes in left.items():
        if num_bytes:
            raise ValueError(f"'{name}' is {abs(num_bytes)} bytes {'short' if num_bytes > 0 else 'too long'}")
    return digest.hexdigest()


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items, while a thread makes the next one."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as other:
        coming = other.submit(lambda: list(itertools.islice(iterator, 1)))
        while item := coming.result():
            coming = other.submit(lambda: list(itertools.islice(iterator, 1)))
            yield item[0]
