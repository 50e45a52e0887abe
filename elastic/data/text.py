"""Text for causal language models: the Python standard library's sources, or text files, in blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from elastic.data.stdlib import library_sources
from elastic.data.task import NEXT_TOKEN_LOSS, Task
from elastic.errors import RecipeError
from elastic.recipe import StdlibData, TextData

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


def stdlib_task(section: StdlibData) -> Task:
    """Return the sources of the running interpreter's standard library (see `elastic.data.stdlib`)."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    num_bytes = 0
    for split, source in library_sources():
        if num_bytes >= section.max_bytes:
            break
        num_bytes += len(source.encode())
        splits[split].append(source)
    return _text_task(splits, _train_tokenizer(splits["train"], section.vocab_size), section.sequence_length)


def text_task(section: TextData) -> Task:
    """Return the text of the files; its end is held out.

    Raises:
        RecipeError: if a file is missing, is no text, or all of them are empty.
    """
    texts = [_read(Path(path)) for path in section.paths]
    text = "\n".join(texts)
    if not text.strip():
        raise RecipeError(f"the text files hold no text: {', '.join(section.paths)}.")
    validation_start = int(len(text) * (1 - section.validation - section.test))
    test_start = int(len(text) * (1 - section.test))
    splits = {
        "train": [text[:validation_start]],
        "validation": [text[validation_start:test_start]],
        "test": [text[test_start:]],
    }
    tokenizer: PreTrainedTokenizerBase
    if section.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(section.tokenizer)
    elif section.characters:
        tokenizer = _character_tokenizer(text)
    else:
        tokenizer = _train_tokenizer(splits["train"], section.vocab_size)
    return _text_task(splits, tokenizer, section.sequence_length)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"the text file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text.") from None


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def _character_tokenizer(text: str) -> PreTrainedTokenizerBase:
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, UNKNOWN, *sorted(set(text))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _text_task(splits: Mapping[str, list[str]], tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> Task:
    return Task(
        datasets={name: _blocks(texts, tokenizer, sequence_length) for name, texts in splits.items()},
        metric=NEXT_TOKEN_LOSS,
        model_config={
            "vocab_size": len(tokenizer),
            "max_position_embeddings": sequence_length,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        input_shapes={"input_ids": (1, sequence_length)},
        preprocess={"text": "tokens of the tokenizer beside the model"},
        tokenizer=tokenizer,
        measure_batch_size=16,
    )


def _blocks(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[dict[str, torch.Tensor]]:
    ids: list[int] = []
    for encoded in tokenizer(texts, verbose=False)["input_ids"] if texts else []:
        ids += [*encoded, tokenizer.eos_token_id]
    blocks = torch.tensor(ids[: len(ids) // length * length], dtype=torch.int64).view(-1, length)
    return [{"input_ids": block, "labels": block} for block in blocks]
