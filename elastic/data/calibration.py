"""Calibration data: a few hundred inputs by which importance is judged; no labels needed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from elastic.data.files import load_rows, load_splits, load_table
from elastic.data.task import Task
from elastic.errors import RecipeError
from elastic.recipe import SentencePairData

BATCH_SIZE = 32
MAX_TOKENS = 512
_TEXT_TYPES = ("string", "large_string")
"""What Arrow calls text; pandas and Polars write the second."""


@dataclass(frozen=True)
class Calibration:
    """Inputs that can be run through several times, batch after batch; only one batch is in memory as tensors."""

    examples: list[Any]
    collate: Any
    """From examples to a batch."""
    source: str
    """Where they come from, in words."""

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.examples), BATCH_SIZE):
            batch = self.collate(self.examples[start : start + BATCH_SIZE])
            batch.pop("labels", None)
            yield batch


def calibration_of(task: Task, num_examples: int, *, seed: int = 0) -> Calibration:
    """Return random training examples of a task, inputs of like length together."""
    dataset = task.datasets["train"]
    chosen = random.Random(seed).sample(range(len(dataset)), min(num_examples, len(dataset)))
    return Calibration(_by_length([dataset[i] for i in chosen]), task.collate, "the recipe's training data")


def calibration_from_text(path: str, tokenizer_name: str, num_examples: int, *, seed: int = 0) -> Calibration:
    """Return random texts: the lines of a text file, or the text columns of what recipes read as data.

    That is a parquet file, a folder with train.parquet, or a dataset of the Hub; of pairs, both sentences.

    Raises:
        RecipeError: if there is no such data, no text in it, or the model has no tokenizer.
    """
    texts = [text for text in _texts(path) if text.strip()]
    if not texts:
        raise RecipeError(f"the calibration data {path} has no usable rows: no text that is not empty.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"calibration needs the tokenizer of '{tokenizer_name}': {error}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chosen = random.Random(seed).sample(texts, min(num_examples, len(texts)))
    limit = min(tokenizer.model_max_length, MAX_TOKENS)
    encoded = [dict(tokenizer(text, truncation=True, max_length=limit)) for text in chosen]

    def collate(examples: list[Any]) -> dict[str, torch.Tensor]:
        return dict(tokenizer.pad(examples, return_tensors="pt"))

    return Calibration(_by_length([example for example in encoded if example["input_ids"]]), collate, path)


def _texts(path: str) -> list[str]:
    file = Path(path).expanduser()
    if file.suffix != ".parquet" and (file.is_file() or file.suffix == ".txt"):
        return load_rows(path, ("",))
    data = load_table(file) if file.suffix == ".parquet" else load_splits(path).get("train")
    if data is None:
        raise RecipeError(f"the calibration data {path} has no train split.")
    texts = [name for name, feature in data.features.items() if getattr(feature, "dtype", "") in _TEXT_TYPES]
    # What else is text beside pairs of sentences names their origin.
    pair = SentencePairData.model_fields["sentence_columns"].default
    columns = list(pair) if set(pair) <= set(texts) else texts
    if not columns:
        raise RecipeError(
            f"the calibration data {path} has no usable rows: none of its columns is text ("
            f"{', '.join(data.column_names)})."
        )
    return [text for column in columns for text in data[column] if text]


def _by_length(examples: list[Any]) -> list[Any]:
    """Like lengths together, so that little is padded; nothing to do for images."""
    if not examples or "input_ids" not in examples[0]:
        return examples
    return sorted(examples, key=lambda example: len(example["input_ids"]))
