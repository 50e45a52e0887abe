"""A tiny embedder with its tokenizer, as sentence-transformers writes one, and sentence pairs."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "bird",
    "sits",
    "runs",
    "sings",
    "on",
    "under",
    "near",
    "mat",
    "tree",
    "house",
    "red",
    "blue",
    "old",
    "quick",
    "slowly",
    "loudly",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_embedder(folder: Path, *, layers: int = 3, hidden: int = 32) -> Path:
    """Write a random BERT with mean pooling and normalisation."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS, "[MASK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, mask_token="[MASK]", **names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=len(vocabulary),
                max_position_embeddings=32,
                initializer_range=0.2,
            )
        )
    plain = folder.with_name(f"{folder.name}-transformer")
    model.save_pretrained(plain)
    fast.save_pretrained(plain)
    transformer = Transformer(str(plain))
    SentenceTransformer(modules=[transformer, Pooling(hidden), Normalize()], device="cpu").save(str(folder))
    return folder


def write_pairs(folder: Path, embedder: Path) -> Path:
    """Write train, dev and test pairs whose score is what the embedder itself thinks of them: it is perfect."""
    rng = random.Random(0)
    judge = SentenceTransformer(str(embedder), device="cpu")
    folder.mkdir()
    for split, count in (("train", 60), ("dev", 40), ("test", 40)):
        sentences = [" ".join(rng.sample(WORDS, rng.randint(3, 8))) for _ in range(2 * count)]
        first, second = sentences[:count], sentences[count:]
        scores = (judge.encode(first) * judge.encode(second)).sum(1).tolist()
        rows = {"sentence1": first, "sentence2": second, "score": scores}
        Dataset.from_dict(rows).to_parquet(str(folder / f"{split}.parquet"))
    return folder
