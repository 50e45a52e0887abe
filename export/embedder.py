"""Sentence-transformers models as one module: token ids in, embeddings of texts out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.errors import CheckpointError

MODULES_NAME = "modules.json"
OUTPUT_NAME = "sentence_embedding"


class Embedder(nn.Module):
    """A Transformer and what makes embeddings of its outputs: pooling, projections, truncation, normalisation.

    Truncation comes before the last normalisation, so that shorter embeddings have length 1 as well (Matryoshka
    representations, arXiv 2205.13147).
    """

    main_input_name = "input_ids"

    def __init__(
        self,
        transformer: PreTrainedModel,
        head: Sequence[nn.Module],
        *,
        dim: int | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        modules = list(head)
        self.normalized = bool(modules) and type(modules[-1]).__name__ == "Normalize"
        self.transformer = transformer
        self.head = nn.Sequential(*(modules[:-1] if self.normalized else modules))
        self.dim = dim
        self.max_length = max_length

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the Transformer."""
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        """Where the Transformer is."""
        return self.transformer.device

    def around(self, transformer: PreTrainedModel) -> Embedder:
        """Return an embedder with the same head around another Transformer."""
        other = Embedder(transformer, list(self.head), dim=self.dim, max_length=self.max_length)
        other.normalized = self.normalized
        return other

    def set_attn_implementation(self, name: str) -> None:
        """Choose how the Transformer computes attention."""
        self.transformer.set_attn_implementation(name)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        """Map ids and mask ``(batch, sequence)`` to embeddings ``(batch, width)``."""
        returned = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **options)
        features = {"token_embeddings": returned["last_hidden_state"], "attention_mask": attention_mask}
        embeddings = self.head(features)[OUTPUT_NAME]
        if self.dim is not None:
            if self.dim > embeddings.shape[1]:
                raise CheckpointError(
                    f"embeddings of this model have {embeddings.shape[1]} dimensions, not {self.dim}."
                )
            embeddings = embeddings[:, : self.dim]
        return {OUTPUT_NAME: F.normalize(embeddings, dim=-1) if self.normalized else embeddings}


Exportable = PreTrainedModel | Embedder


def body_of(model: Exportable) -> PreTrainedModel:
    """Return the Transformers model that runs inside."""
    return model.transformer if isinstance(model, Embedder) else model


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
        raise CheckpointError(f"{path} does not begin with a Transformer; such embedders have no graph.")
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
    try:
        from sentence_transformers.util import import_from_string
    except ImportError:
        raise CheckpointError("embedders need sentence-transformers: `pip install sentence-transformers`.") from None
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
