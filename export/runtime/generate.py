"""Generates text with a decoder: the prompt at once, then one token after another, with the cache kept in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from .backend import TENSORRT
from .errors import BundleError
from .manifest import PAST, PRESENT, Manifest
from .ort import first_line
from .session import Bundle

Array = np.ndarray[Any, Any]


def has_cache(manifest: Manifest) -> bool:
    """Whether the graph takes and returns a key-value cache."""
    return any(spec.name.startswith(f"{PAST}.") for spec in manifest.inputs)


def empty_cache(manifest: Manifest, batch: int) -> dict[str, Array]:
    """Return the cached keys and values before the first token: arrays of length 0."""
    sizes = {"batch": batch, "past": 0}
    return {
        spec.name: np.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape], dtype=spec.dtype)
        for spec in manifest.inputs
        if spec.name.startswith(f"{PAST}.")
    }


def with_cache(manifest: Manifest, inputs: dict[str, Array]) -> dict[str, Array]:
    """Return the inputs, and for a decoder that is given no cache an empty one."""
    if not has_cache(manifest) or "input_ids" not in inputs or any(name.startswith(f"{PAST}.") for name in inputs):
        return inputs
    return {**inputs, **empty_cache(manifest, len(inputs["input_ids"]))}


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Array, Array]:
    """Return ids and mask ``(batch, longest)`` of prompts that all end in the last column."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.array([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], dtype=np.int64)
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], dtype=np.int64)
    return ids, mask


def generate(
    bundle: Bundle,
    ids: Array,
    mask: Array | None = None,
    *,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
) -> Array:
    """Return the most likely next tokens, one after another (greedy decoding).

    Keys and values stay in the memory of ONNX Runtime from one token to the next; nothing of them is copied to NumPy.

    Args:
        bundle: a decoder.
        ids: the prompts, int64 ``(batch, sequence)``, padded at the beginning.
        mask: 1 for tokens and 0 for padding, of the same shape; by default nothing is padded.
        max_new_tokens: how many tokens to generate at most.
        eos_ids: tokens that end a text; what follows them is ``pad_id``.
        pad_id: the token after the end.

    Returns:
        The new tokens, int64 ``(batch, new)``.

    Raises:
        BundleError: if the bundle is no decoder with a cache, or the text would be longer than the model takes.
    """
    manifest = bundle.manifest
    if not has_cache(manifest):
        raise BundleError(f"the bundle '{bundle.folder}' is no decoder with a key-value cache, so it cannot generate.")
    if max_new_tokens < 1:
        raise BundleError(f"the number of new tokens must be 1 or more, not {max_new_tokens}.")
    mask = np.ones_like(ids) if mask is None else mask
    if not mask[:, -1].all():
        raise BundleError("prompts must end in the last column; pad them at the beginning.")
    batch, length = ids.shape
    bundle.check_sizes({"total": length + max_new_tokens - 1})
    cache: dict[str, Any] = empty_cache(manifest, batch)
    bundle.sizes({"input_ids": ids, "attention_mask": mask, **cache})
    finished = np.zeros(batch, dtype=bool)
    new: list[Array] = []
    while True:
        logits, cache = _step(bundle, ids, mask, cache)
        token = np.where(finished, pad_id, logits[:, -1].argmax(axis=-1))
        new.append(token)
        finished |= np.isin(token, list(eos_ids))
        if len(new) == max_new_tokens or finished.all():
            return np.stack(new, axis=1)
        ids = token[:, None]
        mask = np.concatenate([mask, np.ones((batch, 1), dtype=np.int64)], axis=1)


def _step(bundle: Bundle, ids: Array, mask: Array, cache: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """Run the graph, and return the logits as an array, and the cache as values of ONNX Runtime, or as arrays."""
    if bundle.backend == TENSORRT:
        arrays = bundle.run({"input_ids": ids, "attention_mask": mask, **cache})
        return arrays["logits"], _as_past(arrays)
    binding = bundle.session.io_binding()
    names = [spec.name for spec in bundle.manifest.outputs]
    try:
        for name, array in {"input_ids": ids, "attention_mask": mask, **bundle.controls}.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in cache.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name)
        bundle.session.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
    except Exception as error:  # ONNX Runtime's own exception types share no base class.
        raise BundleError(f"the graph in '{bundle.folder}' cannot run these inputs: {first_line(error)}") from None
    return found["logits"].numpy(), _as_past(found)


def _as_past(found: dict[str, Any]) -> dict[str, Any]:
    """Return the cache among the outputs under the names that it has as inputs."""
    present = {name: value for name, value in found.items() if name.startswith(f"{PRESENT}.")}
    return {f"{PAST}{name.removeprefix(PRESENT)}": value for name, value in present.items()}
