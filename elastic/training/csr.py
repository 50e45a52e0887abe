"""Sparse codes of frozen embeddings: the alternative to cutting their dimensions off.

Needs the package sentence-transformers (5.2 or newer), whose sparse encoders do the work.
"""

from __future__ import annotations

from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

from elastic.errors import ElasticError


def make_sparse_embedder(
    embedder: SentenceTransformer, *, active_dims: int = 32, expansion: int = 4, auxiliary_dims: int = 512
) -> SparseEncoder:
    """Put a top-k sparse autoencoder on a frozen embedder (CSR, arXiv 2503.01776, section 3).

    Train what is returned with sentence-transformers' ``SparseEncoderTrainer`` and ``CSRLoss``; only the autoencoder
    learns. ``active_dims`` can be changed afterwards, as ``encode(..., max_active_dims=16)``.

    Args:
        embedder: dense, its output ``(batch, width)``; taken before its normalisation. It is frozen in place.
        active_dims: k, the dimensions of a code that are not zero.
        expansion: the code's width, as a multiple of the embedding's.
        auxiliary_dims: how many dead dimensions the auxiliary loss revives at once.

    Raises:
        ElasticError: if k or the auxiliary dimensions do not fit into the code's width.
    """
    width = embedder.get_embedding_dimension()
    if width is None:
        raise ElasticError("the embedder does not say how wide its embeddings are.")
    code = expansion * width
    for name, value in (("active_dims", active_dims), ("auxiliary_dims", auxiliary_dims)):
        if not 1 <= value <= code:
            raise ElasticError(f"{name}={value} must lie between 1 and the code's width, {code}.")
    frozen = [module for module in embedder if not isinstance(module, Normalize)]
    for module in frozen:
        module.requires_grad_(False)
    encoder = SparseAutoEncoder(input_dim=width, hidden_dim=code, k=active_dims, k_aux=auxiliary_dims)
    return SparseEncoder(modules=[*frozen, encoder], device=str(embedder.device))
