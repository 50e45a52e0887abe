"""What a graph is worth: its task's metric on held-out examples, or the likeness of its outputs to float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from elastic.data import Task, confidence_interval
from elastic.errors import CheckpointError
from elastic.export.embedder import OUTPUT_NAME
from elastic.export.runtime.manifest import TensorSpec
from elastic.export.runtime.ort import open_graph
from elastic.selection import Quality

from .calibration import CalibrationData, Feed, complete
from .similarity import Array, is_judged, row_cosines

COSINE = "cosine"
Judge = Callable[[Path], Quality]
"""From the file of a graph to its quality."""


def cosine_judge(
    reference: Path, feeds: Sequence[Feed], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], split: str
) -> Judge:
    """Return what judges graphs by the mean cosine of their outputs' rows to those of a reference."""
    judged = [spec for spec in outputs if is_judged(spec)]
    completed = [complete(feed, inputs) for feed in feeds]

    def run(path: Path) -> list[list[Array]]:
        session = open_graph(path)
        return [run_graph(session, judged, feed) for feed in completed]

    expected = run(reference)

    def judge(path: Path) -> Quality:
        cosines = [
            row_cosines(spec, wanted, found, feed.get("attention_mask"))
            for feed, many_wanted, many_found in zip(completed, expected, run(path), strict=True)
            for spec, wanted, found in zip(judged, many_wanted, many_found, strict=True)
        ]
        rows = np.concatenate(cosines)
        return Quality(COSINE, float(rows.mean()), True, split, len(rows))

    return judge


def task_judge(task: Task, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], split: str) -> Judge:
    """Return what judges graphs by a task's metric on one of its splits."""
    judged = [spec for spec in outputs if is_judged(spec)]

    def judge(path: Path) -> Quality:
        session = open_graph(path)
        items = []
        for batch in DataLoader(task.datasets[split], batch_size=task.measure_batch_size, collate_fn=task.collate):
            labels = batch.pop("labels")
            feed = complete({name: tensor.numpy() for name, tensor in batch.items()}, inputs)
            returned = {
                spec.name: torch.from_numpy(array.astype(np.float32))
                for spec, array in zip(judged, run_graph(session, judged, feed), strict=True)
            }
            items.append(task.metric.items(_judged_output(task, returned, batch), labels))
        kept = torch.cat(items)
        interval = confidence_interval(task.metric, kept)
        return Quality(
            task.metric.name, task.metric.value(kept), task.metric.higher_is_better, split, len(kept), interval
        )

    return judge


def run_graph(session: Any, outputs: Sequence[TensorSpec], feed: Feed) -> list[Array]:
    """Run a graph that takes float32, or float16 in its place."""
    half = {tensor.name for tensor in session.get_inputs() if tensor.type == "tensor(float16)"}
    arrays = {name: array.astype(np.float16) if name in half else array for name, array in feed.items()}
    return session.run([spec.name for spec in outputs], arrays)  # type: ignore[no-any-return]


def final_judge(
    reference: Path, data: CalibrationData, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Judge:
    """Return what judges a finished graph, on data that calibrated nothing."""
    if data.task is not None:
        return task_judge(data.task, inputs, outputs, "validation")
    return cosine_judge(reference, data.held_out, inputs, outputs, "held-out calibration data")


def _judged_output(task: Task, returned: dict[str, torch.Tensor], batch: dict[str, Any]) -> torch.Tensor:
    """Return what the metric judges; the graph of an embedder has pooled already."""
    if OUTPUT_NAME in returned:
        return returned[OUTPUT_NAME]
    try:
        return task.outputs(returned, batch)
    except KeyError:
        raise CheckpointError(
            f"the recipe's task judges other outputs than this graph's, which returns {', '.join(returned)}."
        ) from None
