"""Calibration data for graphs: inputs on which ranges are measured, and others on which the result is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elastic.data import Calibration, Task, calibration_from_text, calibration_of
from elastic.errors import CheckpointError
from elastic.export.runtime.errors import BundleError
from elastic.export.runtime.manifest import PAST, TensorSpec
from elastic.export.runtime.samples import load_arrays

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
"""The inputs of one run of a graph."""

BATCH_SIZE = 32
HELD_OUT = 4
"""Every so-manieth batch is held out of calibration; the final graph is judged on these."""


@dataclass(frozen=True)
class CalibrationData:
    """Batches of inputs for ranges and ranks, and further ones, or a task, for judging what came of it."""

    feeds: tuple[Feed, ...]
    held_out: tuple[Feed, ...]
    source: str
    """Where they come from, in words."""
    task: Task | None = None
    """Its validation examples and metric judge, instead of cosines on ``held_out``."""

    @property
    def num_examples(self) -> int:
        """How many examples calibrate."""
        return sum(len(next(iter(feed.values()))) for feed in self.feeds)


def calibration_data(path: Path, tokenizer: Path, num_examples: int) -> CalibrationData:
    """Read calibration data: texts (a line of a text file, a row of a parquet file), or inputs of the graph (``.npz``).

    Args:
        path: the file.
        tokenizer: a folder with the model's tokenizer, for texts.
        num_examples: how many of them calibrate and judge.

    Raises:
        CheckpointError: if an ``.npz`` file has no arrays of one length.
        RecipeError: if there are no texts, or no tokenizer.
    """
    if path.suffix == ".npz":
        return _split(_batches(path, num_examples), str(path.name))
    return _split(_arrays(calibration_from_text(str(path), str(tokenizer), num_examples)), str(path.name))


def calibration_of_task(task: Task, num_examples: int) -> CalibrationData:
    """Return training examples of a task for calibration; its validation examples judge."""
    data = calibration_of(task, num_examples)
    return CalibrationData(tuple(_arrays(data)), (), data.source, task)


def complete(feed: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Feed:
    """Return a feed with exactly the inputs of a graph: a mask of ones and empty caches where it has none.

    Raises:
        CheckpointError: if an input is missing, or does not fit.
    """
    feed = dict(feed)
    ids = feed.get("input_ids")
    if ids is not None and "attention_mask" not in feed:
        feed["attention_mask"] = np.ones_like(ids)
    batch = len(next(iter(feed.values())))
    completed: Feed = {}
    for spec in specs:
        if spec.name.startswith(f"{PAST}.") and spec.name not in feed:
            shape = [batch if dim == "batch" else 0 if isinstance(dim, str) else dim for dim in spec.shape]
            feed[spec.name] = np.zeros(shape, spec.dtype)
        array = feed.get(spec.name)
        if array is None:
            raise CheckpointError(
                f"the calibration data has no '{spec.name}'; the graph takes {', '.join(s.name for s in specs)}."
            )
        fits = array.ndim == len(spec.shape) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
            raise CheckpointError(
                f"the calibration data has '{spec.name}' as {array.dtype.name} of shape {array.shape}, and the graph "
                f"takes {spec.dtype} of shape ({', '.join(map(str, spec.shape))})."
            )
        completed[spec.name] = array.astype(spec.dtype, copy=False)
    return completed


def _batches(path: Path, num_examples: int) -> list[Feed]:
    try:
        arrays = load_arrays(path)
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise CheckpointError(f"the calibration data {path} must hold arrays with one example a row, all as many.")
    count = min(lengths.pop(), num_examples)
    size = max(1, min(BATCH_SIZE, count // HELD_OUT))
    return [
        {name: array[start : min(start + size, count)] for name, array in arrays.items()}
        for start in range(0, count, size)
    ]


def _arrays(calibration: Calibration) -> list[Feed]:
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in calibration]


def _split(batches: Iterable[Feed], source: str) -> CalibrationData:
    """Hold out every fourth batch.

    Raises:
        CheckpointError: if there are not two batches.
    """
    batches = list(batches)
    held_out = batches[HELD_OUT - 1 :: HELD_OUT] or batches[-1:]
    feeds = [batch for batch in batches if not any(batch is held for held in held_out)]
    if not feeds:
        raise CheckpointError(
            f"the calibration data {source} has too few examples to calibrate and to judge; give {2 * BATCH_SIZE} "
            "or more."
        )
    return CalibrationData(tuple(feeds), tuple(held_out), source)
