"""Elastic embedders of sentence-transformers: trained with any of its losses, and run at any size.

Needs the package sentence-transformers (5.2 or newer).
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn

from elastic.errors import ElasticError
from elastic.nested import get_elastic, make_elastic
from elastic.space import DropOrder, SearchSpace
from elastic.training.passes import SharedPass
from elastic.training.trainer import ElasticMixin


def make_elastic_embedder(
    embedder: SentenceTransformer, space: SearchSpace, drop_order: DropOrder | None = None
) -> SentenceTransformer:
    """Make the Transformer of an embedder elastic, in place, and return the embedder.

    Inside `elastic.active`, ``encode`` and every loss see the embeddings of the active subnet: of its layers and
    widths, cut to its ``embedding_dim``, and normalised again where the embedder normalises.

    Args:
        embedder: whose first module is a Transformer of a supported family.
        space: which axes are elastic, ``embedding_dim`` among them.
        drop_order: as of `elastic.make_elastic`.

    Raises:
        ElasticError: if its first module holds no Transformer, or that is elastic already.
        FamilyError: if the architecture is not supported.
        SpaceError: if the space does not fit the model's sizes.
    """
    transformer = getattr(embedder[0], "auto_model", None)
    if transformer is None:
        raise ElasticError(f"the embedder's first module, {type(embedder[0]).__name__}, holds no Transformer.")
    make_elastic(transformer, space, drop_order)
    embedder._elastic = get_elastic(transformer)  # type: ignore[assignment]
    normalises = any(isinstance(module, Normalize) for module in embedder)

    def truncate(module: nn.Module, inputs: Any, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = get_elastic(module).active.current.embedding_dim
        if kept is None:
            return features
        embedding = features["sentence_embedding"][..., :kept]
        return {
            **features,
            "sentence_embedding": nn.functional.normalize(embedding, dim=-1) if normalises else embedding,
        }

    embedder.register_forward_hook(truncate)
    return embedder


class ElasticSentenceTransformerTrainer(ElasticMixin, SentenceTransformerTrainer):
    """A `SentenceTransformerTrainer` for elastic embedders: with any loss, each subnet of a step in a pass of its own.

    Takes what that Trainer takes, with ``sampler``, ``weights``, ``granularities`` and ``regularise_largest_only`` of
    `ElasticMixin`. The loss alone is the objective: where one pass shall serve several exits, or a teacher teach,
    train with a recipe.
    """

    def _passes(self, subnets: Any) -> list[SharedPass]:
        return [SharedPass(subnet, (subnet,)) for subnet in subnets]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of sentence-transformers, with the share of this subnet in the step."""
        computed: Any = SentenceTransformerTrainer.compute_loss(
            self,
            model,  # type: ignore[arg-type]
            inputs,
            return_outputs,
            num_items_in_batch,
        )
        if self._step is None:
            return computed
        (subnet,) = self._step.subnets
        share = self._weight(subnet) / self._step.total_weight
        return (computed[0] * share, computed[1]) if return_outputs else computed * share

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        SentenceTransformerTrainer._load_from_checkpoint(self, resume_from_checkpoint)
