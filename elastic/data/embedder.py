"""The parts of a sentence-transformers folder around its Transformer: tokenizer, pooling, and what follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from elastic.errors import RecipeError
from elastic.space import ModelDims, Subnet

MODULES_NAME = "modules.json"
_WIDTH_FIELDS = ("embedding_dimension", "word_embedding_dimension")
"""What a saved pooling calls the width of what it pools; the second until sentence-transformers 5.1."""


def embed(head: nn.Module, returned: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the pooled embeddings ``(batch, width)`` of what a model returned."""
    features = {"token_embeddings": returned["last_hidden_state"], "attention_mask": inputs["attention_mask"]}
    return head(features)["sentence_embedding"]  # type: ignore[no-any-return]


def load_embedder(name: str, max_length: int | None) -> tuple[PreTrainedTokenizerBase, nn.Module, int]:
    """Load the tokenizer, what follows the Transformer (pooling, ...), and the longest input in tokens.

    The Transformer itself is the model that becomes elastic; an extracted one may not load as stock at all.

    Raises:
        RecipeError: if sentence-transformers is not installed, or there is no such embedder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise RecipeError(
            "the task 'sentence-similarity' needs sentence-transformers: `pip install sentence-transformers`."
        ) from None
    folder = Path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if (folder / MODULES_NAME).is_file():
            head, limit = _load_head(folder), _read_limit(folder)
        else:
            embedder = SentenceTransformer(name, device="cpu")
            head, limit = list(embedder)[1:], embedder.max_seq_length
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"the embedder '{name}' cannot be loaded: {error}") from None
    limit = max_length or limit or tokenizer.model_max_length
    return tokenizer, nn.Sequential(*head).eval().requires_grad_(False), int(limit)


def _load_head(folder: Path) -> list[nn.Module]:
    from sentence_transformers.util import import_from_string

    modules = []
    for entry in json.loads((folder / MODULES_NAME).read_text())[1:]:
        # Another package's class would be somebody else's code.
        if not entry["type"].startswith("sentence_transformers."):
            raise RecipeError(f"{folder} has the module {entry['type']}, which is not one of sentence-transformers.")
        module_class: Any = import_from_string(entry["type"])
        modules.append(module_class.load(str(folder), subfolder=entry["path"]))
    return modules


def _read_limit(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_text()).get("max_seq_length") if path.is_file() else None


def cut_embedder(folder: Path, subnet: Subnet, dims: ModelDims) -> None:
    """Let what lies behind the Transformer in an extracted embedder's folder fit its subnet."""
    if not (folder / MODULES_NAME).is_file():
        return
    if subnet.hidden is not None:
        _narrow_pooling(folder, subnet.hidden)
    if subnet.embedding_dim is not None:
        _truncate(folder, subnet.hidden or dims.hidden, subnet.embedding_dim)


def _narrow_pooling(folder: Path, hidden: int) -> None:
    """Tell the poolings of an embedder how wide the stream is."""
    for path in folder.glob("[1-9]_Pooling/config.json"):
        config = json.loads(path.read_text())
        config.update({name: hidden for name in _WIDTH_FIELDS if name in config})
        path.write_text(json.dumps(config, indent=4))


def _truncate(folder: Path, width: int, kept: int) -> None:
    """Let an embedder's folder end in its first ``kept`` dimensions of ``width``, normalised.

    Written as modules that every sentence-transformers has: a linear layer that picks the dimensions, and Normalize.
    """
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    path = folder / MODULES_NAME
    entries = json.loads(path.read_text())
    if entries[-1]["type"].rpartition(".")[2] == "Normalize":
        shutil.rmtree(folder / entries.pop()["path"], ignore_errors=True)
    pick = Dense(width, kept, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(kept, width))
    for module in (pick, Normalize()):
        name = f"{len(entries)}_{type(module).__name__}"
        (folder / name).mkdir(exist_ok=True)
        module.save(str(folder / name))
        kind = f"sentence_transformers.models.{type(module).__name__}"
        entries.append({"idx": len(entries), "name": str(len(entries)), "path": name, "type": kind})
    path.write_text(json.dumps(entries, indent=2) + "\n")
