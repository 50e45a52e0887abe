"""Sentence-transformers models as one module: token ids in, embeddings of texts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.errors import CheckpointError

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
