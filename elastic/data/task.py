"""A task: the data of a recipe, how the model is trained on it, and how quality is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from elastic.errors import RecipeError

Dataset = Any
"""Anything with a length and items that are dicts of tensors."""


@dataclass(frozen=True)
class Metric:
    """How quality is measured: correct predictions, or the loss of each token."""

    name: str
    higher_is_better: bool
    counts: Callable[[torch.Tensor, torch.Tensor], tuple[float, int]]
    """From logits and labels to (sum, number of items that it sums over)."""


@dataclass(frozen=True)
class Task:
    """Datasets by split (``train``, ``validation``, ``test``) with what is needed to train and to measure on them."""

    datasets: Mapping[str, Dataset]
    metric: Metric
    model_config: Mapping[str, Any]
    """What the data decides about the model's configuration: labels, vocabulary, image size."""
    input_shapes: Mapping[str, tuple[int, ...]]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """How raw inputs become tensors, in words that a manifest can carry."""
    tokenizer: PreTrainedTokenizerBase | None = None
    measure_batch_size: int = 256
    """Examples that `measure` runs at once; their logits are held in memory."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have examples."""
        return tuple(split for split, dataset in self.datasets.items() if len(dataset))

    def __post_init__(self) -> None:
        for split in ("train", "validation"):
            if split not in self.splits:
                raise RecipeError(f"the data has no {split} examples; give more data, or another share to hold out.")


def accuracy_counts(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Count the correct predictions of ``(batch, classes)`` logits, in percent."""
    return 100.0 * float((logits.argmax(-1) == labels).sum()), len(labels)


def next_token_loss_counts(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Sum the loss of predicting each next token from ``(batch, tokens, vocabulary)`` logits, in nats."""
    predicted, following = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(predicted.float(), following, ignore_index=-100, reduction="sum")
    return float(loss), int((following != -100).sum())


ACCURACY = Metric("accuracy", higher_is_better=True, counts=accuracy_counts)
NEXT_TOKEN_LOSS = Metric("loss", higher_is_better=False, counts=next_token_loss_counts)


def measure(model: PreTrainedModel, task: Task, split: str) -> tuple[float, int]:
    """Return the model's metric on a split, and the number of items that it is the mean of.

    Raises:
        RecipeError: if the task has no such split.
    """
    if split not in task.splits:
        raise RecipeError(f"the recipe's data has no '{split}' split; it has {', '.join(task.splits)}.")
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in DataLoader(task.datasets[split], batch_size=task.measure_batch_size):
            labels = batch.pop("labels")
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            batch_sum, batch_count = task.metric.counts(model(**inputs)["logits"].cpu(), labels)
            total, count = total + batch_sum, count + batch_count
    model.train(was_training)
    return total / count, count
