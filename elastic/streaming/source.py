"""The weight files of a checkpoint: where each tensor of its model lies, and reading parts of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from elastic.cuts import Cut
from elastic.errors import CheckpointError

CHUNK_BYTES = 32 * 2**20
"""How much of a tensor is in memory at once."""

READ_AHEAD_BYTES = 128 * 2**10
"""What Linux reads at most when it is told that bytes will be needed, unless it is configured to read more."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    """As the file has it: transformers saves some families under other names than their models have."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Of its first byte in the file."""

    def read(self) -> torch.Tensor:
        """Return the whole tensor, mapped from the file."""
        with _opened(self.path) as file:
            return file.get_tensor(self.name)

    def chunks(self, cut: Cut, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield what a cut leaves of the tensor, in row-major order, as contiguous pieces of about `CHUNK_BYTES`."""
        if not cut.ranges:
            yield self.read().to(dtype)
            return
        rows, *others = cut.ranges
        row_bytes = self.dtype.itemsize * torch.Size(self.shape[1:]).numel()
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for part in rows:
            for start in range(part.start, part.stop, step):
                stop = min(start + step, part.stop)
                inner = Cut(cut.source, ((slice(0, stop - start),), *others))
                _announce(self.path, self.offset + start * row_bytes, (stop - start) * row_bytes)
                # Opened for every piece: pages of a file count as memory for as long as it is mapped.
                with _opened(self.path) as file:
                    yield inner.take(file.get_slice(self.name)[start:stop]).to(dtype).contiguous()


def _announce(path: Path, offset: int, num_bytes: int) -> None:
    """Have the system read bytes of a file; at missing pages of a mapping it would wait, and read far around them."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            for start in range(offset, offset + num_bytes, READ_AHEAD_BYTES):
                size = min(READ_AHEAD_BYTES, offset + num_bytes - start)
                os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_WILLNEED)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the whole checkpoint again.") from None


def find_tensors(paths: Iterable[Path], model: PreTrainedModel) -> dict[str, Stored]:
    """Return where each tensor of a model lies in its weight files, by the name that the model gives it.

    Tied weights are found under every one of their names, though they are stored once.

    Args:
        paths: safetensors files.
        model: a model of the checkpoint's class and configuration; the meta device will do.

    Raises:
        CheckpointError: if a file cannot be read, or a tensor is missing, foreign, of another shape, or
            stored in a form that transformers converts when it loads.
    """
    expected = model.state_dict()
    found: dict[str, Stored] = {}
    for path in paths:
        for stored in _stored_in(path):
            name = _model_name(stored, model, expected)
            if name is not None:
                found[name] = stored
    for name, other in getattr(model, "all_tied_weights_keys", {}).items():
        if name in found and other in found:
            raise CheckpointError(
                f"{found[name].path} holds both '{name}' and '{other}', which are one weight in config.json; save the "
                "model again."
            )
        one = found.get(name) or found.get(other)
        if one is not None:
            found[name] = found[other] = one
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"the weights do not fit config.json: '{name}' is missing.")
        if found[name].shape != tuple(tensor.shape):
            raise CheckpointError(
                f"the weights do not fit config.json: '{name}' has the shape {list(found[name].shape)} in "
                f"{found[name].path.name} and {list(tensor.shape)} in the configuration."
            )
    return found


def _stored_in(path: Path) -> list[Stored]:
    with _opened(path) as file, path.open("rb") as same:
        # The library has checked the header, and does not tell where tensors begin.
        size = int.from_bytes(same.read(8), "little")
        header, found = json.loads(same.read(size)), []
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            dtype = (part[:0] if shape else file.get_tensor(name)).dtype
            found.append(Stored(path, name, shape, dtype, 8 + size + header[name]["data_offsets"][0]))
        return found


def _model_name(stored: Stored, model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> str | None:
    """Rename as transformers does when it loads; None for what it ignores."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    name, converted = rename_source_key(stored.name, renamings, converters, prefix, expected)
    if name not in expected and stored.name in expected:
        name, converted = rename_source_key(stored.name, [], [], prefix, expected)
    if converted is not None:
        raise CheckpointError(
            f"'{stored.name}' in {stored.path} is stored in a form that transformers converts when it loads, so slices "
            "of it are no smaller model; extract without streaming."
        )
    if name in expected:
        return name
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    if any(re.search(pattern, name) for pattern in ignored):
        return None
    raise CheckpointError(f"the weights do not fit config.json: '{stored.name}' in {stored.path.name} is foreign.")
