"""The parts of a sentence-transformers folder around its Transformer: tokenizer, pooling, and what follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from elastic.errors import CheckpointError, ElasticError, RecipeError
from elastic.space import ModelDims, Subnet

MODULES_NAME = "modules.json"
_WIDTH_FIELDS = ("embedding_dimension", "word_embedding_dimension")
"""What a saved pooling calls the width of what it pools; the second until sentence-transformers 5.1."""


def embed(head: nn.Module, returned: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the pooled embeddings ``(batch, width)`` of what a model returned."""
    features = {"token_embeddings": returned["last_hidden_state"], "attention_mask": inputs["attention_mask"]}
    return head(features)["sentence_embedding"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EmbedderFolder:
    """What a sentence-transformers folder says around its Transformer."""

    transformer: Path
    """The folder of the Transformer."""
    head: list[nn.Module]
    max_length: int | None
    """The longest text in tokens."""
    lower_case: bool
    """Whether texts are made lower case before they are tokenised."""


def is_embedder(folder: Path) -> bool:
    """Whether a folder is one of sentence-transformers."""
    return (folder / MODULES_NAME).is_file()


def read_embedder(folder: Path) -> EmbedderFolder:
    """Read everything of a sentence-transformers folder but its Transformer.

    Raises:
        CheckpointError: if it does not begin with a Transformer, has a module from elsewhere (whose code is not run),
            or sentence-transformers is not installed.
    """
    path = folder / MODULES_NAME
    try:
        entries = [(str(entry["type"]), str(entry["path"])) for entry in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from None
    if not entries or entries[0][0].rpartition(".")[2] != "Transformer":
        raise CheckpointError(f"{path} does not begin with a Transformer, and other embedders are not supported.")
    transformer = folder / entries[0][1]
    settings_path = transformer / "sentence_bert_config.json"
    settings = json.loads(settings_path.read_text()) if settings_path.is_file() else {}
    limit = settings.get("max_seq_length") or _tokenizer_limit(transformer)
    head = [_load_module(folder, *entry) for entry in entries[1:]]
    return EmbedderFolder(transformer, head, limit, bool(settings.get("do_lower_case")))


def _load_module(folder: Path, kind: str, path: str) -> nn.Module:
    if not kind.startswith("sentence_transformers."):
        raise CheckpointError(
            f"{folder / MODULES_NAME} has the module {kind}, which is not one of sentence-transformers."
        )
    _sentence_transformers()
    from sentence_transformers.util import import_from_string

    module_class: Any = import_from_string(kind)
    try:
        module: nn.Module = module_class.load(str(folder), subfolder=path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the module {kind} of the embedder '{folder}' cannot be loaded: {error}") from None
    return module.eval().requires_grad_(False)


def _tokenizer_limit(folder: Path) -> int | None:
    path = folder / "tokenizer_config.json"
    limit = json.loads(path.read_text()).get("model_max_length") if path.is_file() else None
    # Tokenizers without a limit say 1e30.
    return int(limit) if limit and limit < 1_000_000 else None


def load_embedder(name: str, max_length: int | None) -> tuple[PreTrainedTokenizerBase, nn.Module, int, bool]:
    """Load the tokenizer, what follows the Transformer, the longest input in tokens, and whether case is dropped.

    The Transformer itself is the model that becomes elastic; an extracted one may not load as stock at all.

    Raises:
        RecipeError: if there is no such embedder.
        CheckpointError: if its folder cannot be read, or sentence-transformers is not installed.
    """
    folder = Path(name)
    try:
        if is_embedder(folder):
            parts = read_embedder(folder)
            tokenizer = AutoTokenizer.from_pretrained(parts.transformer)
            head, limit, lower_case = parts.head, parts.max_length, parts.lower_case
        else:
            tokenizer = AutoTokenizer.from_pretrained(name)
            embedder = _sentence_transformers().SentenceTransformer(name, device="cpu")
            head, limit = list(embedder)[1:], embedder.max_seq_length
            lower_case = bool(getattr(embedder[0], "do_lower_case", False))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ElasticError):
            raise
        raise RecipeError(f"the embedder '{name}' cannot be loaded: {error}") from None
    limit = max_length or limit or tokenizer.model_max_length
    return tokenizer, nn.Sequential(*head).eval().requires_grad_(False), int(limit), lower_case


def _sentence_transformers() -> Any:
    try:
        import sentence_transformers
    except ImportError:
        raise CheckpointError("embedders need sentence-transformers: `pip install sentence-transformers`.") from None
    return sentence_transformers


def cut_embedder(folder: Path, subnet: Subnet, dims: ModelDims) -> None:
    """Let what lies behind the Transformer in an extracted embedder's folder fit its subnet."""
    if not is_embedder(folder):
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
