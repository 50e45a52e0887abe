"""Pairs of sentences with a similarity, for models that embed: trained on sentences alone, judged on the pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from elastic.data.embedder import embed, load_embedder
from elastic.data.files import load_rows, load_splits
from elastic.data.task import SPEARMAN, Task
from elastic.errors import RecipeError
from elastic.recipe import SentencePairData

COST_TOKENS = 128
Pair = tuple[str, str, float]


def sentences_task(section: SentencePairData, model_name: str) -> Task:
    """Return the sentences of a dataset of pairs, or the pairs with their scores, to train on, and pairs to judge by.

    Without labels, no sentence of the validation and test pairs is trained on.

    Args:
        section: which data.
        model_name: the embedder's folder or Hub name, for its tokenizer and pooling.

    Raises:
        RecipeError: if data is missing or empty, or the model has no tokenizer.
    """
    raw = load_splits(section.path)
    columns = (*section.sentence_columns, section.score_column)
    for split, data in raw.items():
        for column in columns if split != "train" or section.labelled else section.sentence_columns:
            if column not in data.column_names:
                raise RecipeError(
                    f"the {split} data at {section.path} has no column '{column}'; it has "
                    f"{', '.join(data.column_names)}."
                )
    pairs = {
        split: list(zip(*(data[column] for column in columns), strict=True))
        for split, data in raw.items()
        if split != "train" or section.labelled
    }
    sentences = [] if section.labelled else _sentences(section, raw)
    return pairs_task(pairs, model_name, section.max_length, sentences=sentences)


def pairs_task(
    pairs: Mapping[str, Sequence[Pair]], model_name: str, max_length: int | None, *, sentences: Sequence[str] = ()
) -> Task:
    """Return the task of embedding so that cosine similarities rank pairs as their scores do.

    Args:
        pairs: for each split, ``(first, second, score)``.
        model_name: as of `sentences_task`.
        max_length: longest input in tokens; None for the embedder's own.
        sentences: what to train on where there are no train pairs.
    """
    tokenizer, head, limit, lower_case = load_embedder(model_name, max_length)

    def encode(texts: Sequence[str]) -> list[dict[str, Any]]:
        texts = [text.lower() for text in texts] if lower_case else list(texts)
        return _rows(dict(tokenizer(texts, truncation=True, max_length=limit))) if texts else []

    datasets: dict[str, Any] = {"train": encode(sentences)}
    for split, rows in pairs.items():
        encoded = zip(encode([row[0] for row in rows]), encode([row[1] for row in rows]), rows, strict=True)
        datasets[split] = [{"first": a, "second": b, "labels": float(row[2])} for a, b, row in encoded]
        if split != "train":
            # Like lengths together, so that little is padded; the order means nothing to the metric.
            datasets[split].sort(key=lambda row: max(len(row["first"]["input_ids"]), len(row["second"]["input_ids"])))

    def outputs(returned: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return embed(head, returned, inputs)

    return Task(
        datasets=datasets,
        metric=SPEARMAN,
        model_config={},
        input_shapes={"input_ids": (1, min(limit, COST_TOKENS))},
        preprocess={"text": "tokens of the tokenizer beside the model", "max_length": limit},
        tokenizer=tokenizer,
        measure_batch_size=64,
        collate=_Padding(tokenizer),
        outputs=outputs,
        embeds=True,
    )


def _sentences(section: SentencePairData, raw: Mapping[str, Any]) -> list[str]:
    """Return every sentence to train on, but those of the pairs that are judged by."""
    held_out = {text for split in ("validation", "test") if split in raw for column in section.sentence_columns
                for text in raw[split][column]}  # fmt: skip
    texts = {text for column in section.sentence_columns if "train" in raw for text in raw["train"][column]}
    for path in section.unlabelled:
        texts.update(load_rows(path, section.unlabelled_columns or section.sentence_columns))
    return sorted(text for text in texts - held_out if text.strip())[: section.max_train]


def _rows(encoded: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


class _Padding:
    """Pads sentences of a batch to the longest; of pairs, the two sentences become consecutive rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        if "first" not in examples[0]:
            return dict(self._tokenizer.pad(examples, return_tensors="pt"))
        sentences = [example[side] for example in examples for side in ("first", "second")]
        batch = dict(self._tokenizer.pad(sentences, return_tensors="pt"))
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}
