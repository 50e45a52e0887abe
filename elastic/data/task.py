"""A task: the data of a recipe, how the model is trained on it, and how quality is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, default_data_collator

from elastic.errors import RecipeError
from elastic.nested import evaluating, get_elastic, is_elastic

Dataset = Any
"""Anything with a length and items that are dicts of tensors."""


NUM_RESAMPLES = 200


def _mean(items: torch.Tensor) -> float:
    return float(items.double().mean())


@dataclass(frozen=True)
class Metric:
    """How quality is measured: from every item of a split to one number."""

    name: str
    higher_is_better: bool
    items: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """From outputs and labels of a batch to what is kept of each item: ``(items,)`` or ``(items, columns)``."""
    value: Callable[[torch.Tensor], float] = _mean
    """From all items to the quality."""


def logits_of(outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits that a model returned."""
    return outputs["logits"]  # type: ignore[no-any-return]


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
    collate: Callable[[list[Any]], dict[str, torch.Tensor]] = default_data_collator
    """From examples to a batch."""
    outputs: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] = logits_of
    """From what the model returns and its inputs to what the metric judges."""
    embeds: bool = False
    """Whether that is one embedding an example."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have examples."""
        return tuple(split for split, dataset in self.datasets.items() if len(dataset))

    def __post_init__(self) -> None:
        for split in ("train", "validation"):
            if split not in self.splits:
                raise RecipeError(f"the data has no {split} examples; give more data, or another share to hold out.")


def correct_percent(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 100 for each correct prediction of ``(batch, classes)`` logits, and 0 for each wrong one."""
    return 100.0 * (logits.argmax(-1) == labels).float()


def next_token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of predicting each next token from ``(batch, tokens, vocabulary)`` logits, in nats."""
    predicted, following = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(predicted.float(), following, ignore_index=-100, reduction="none")
    return losses[following != -100]


def pair_similarities(embeddings: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return ``(pairs, 2)``: cosine similarity and wanted score, for pairs of consecutive ``(2 pairs, width)`` rows."""
    first, second = embeddings[0::2].float(), embeddings[1::2].float()
    return torch.stack([torch.nn.functional.cosine_similarity(first, second, dim=-1), scores.float()], dim=1)


def rank_correlation(pairs: torch.Tensor) -> float:
    """Return Spearman's rank correlation of two columns, in percent."""
    from scipy.stats import spearmanr  # takes a second to import, and most tasks do without

    return 100.0 * float(spearmanr(pairs[:, 0].numpy(), pairs[:, 1].numpy()).statistic)


ACCURACY = Metric("accuracy", higher_is_better=True, items=correct_percent)
NEXT_TOKEN_LOSS = Metric("loss", higher_is_better=False, items=next_token_losses)
SPEARMAN = Metric("spearman", higher_is_better=True, items=pair_similarities, value=rank_correlation)


def measure(model: PreTrainedModel, task: Task, split: str, *, embedding_dim: int | None = None) -> tuple[float, int]:
    """Return the metric of what the model runs on a split, and the number of its items (see `measure_items`)."""
    items = measure_items(model, task, split, embedding_dim=embedding_dim)
    return task.metric.value(items), len(items)


def measure_items(model: PreTrainedModel, task: Task, split: str, *, embedding_dim: int | None = None) -> torch.Tensor:
    """Return what the metric keeps of every item of a split, for what the model runs (see `elastic.active`).

    Args:
        model: whose active subnet runs, if it is elastic.
        task: the data and its metric.
        split: on which examples.
        embedding_dim: how many dimensions of the embeddings count; by default those of the active subnet.

    Raises:
        RecipeError: if the task has no such split.
    """
    if embedding_dim is None and is_elastic(model):
        embedding_dim = get_elastic(model).active.current.embedding_dim
    if split not in task.splits:
        raise RecipeError(f"the recipe's data has no '{split}' split; it has {', '.join(task.splits)}.")
    items = []
    with torch.inference_mode(), evaluating(model):
        for batch in DataLoader(task.datasets[split], batch_size=task.measure_batch_size, collate_fn=task.collate):
            labels = batch.pop("labels")
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            outputs = task.outputs(model(**inputs), inputs)
            items.append(task.metric.items((outputs[..., :embedding_dim] if task.embeds else outputs).cpu(), labels))
    return torch.cat(items)


def confidence_interval(metric: Metric, items: torch.Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of a metric over draws of its items: a percentile bootstrap.

    It says how much the choice of examples matters, not the seed of training. Items are drawn one by one, which for
    tokens of the same text is narrower than the truth.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(items), (len(items),), generator=generator) for _ in range(NUM_RESAMPLES))
    values = torch.tensor([metric.value(items[drawn]) for drawn in draws], dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def fingerprint(task: Task, split: str) -> str:
    """Return a hash of a split: its length, and 64 to 127 of its examples, evenly spaced, or all if it has fewer."""
    dataset = task.datasets[split]
    digest = hashlib.sha256(f"{len(dataset)}".encode())
    for index in range(0, len(dataset), max(1, len(dataset) // 64)):
        batch = task.collate([dataset[index]])
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(batch[name].numpy().tobytes())
    return digest.hexdigest()
