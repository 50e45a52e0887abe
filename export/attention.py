"""Attention as it is traced: plain MatMul and Softmax, with as few nodes as possible.

The other implementations of transformers add guards against rows without any token, and copy keys and values for every
query head that shares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "elastic_onnx"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention ``(batch, queries, heads, width)`` of query, key and value ``(batch, heads, length, width)``.

    Query heads that share a key and a value become further rows of one matrix, so that nothing is repeated.
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    if heads != shared:
        query = query.reshape(batch, shared, -1, width)
    scores = torch.matmul(query, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        if heads != shared:
            scores = scores.reshape(batch, heads, length, -1)
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    if heads != shared:
        weights = weights.reshape(batch, shared, -1, key.shape[2])
    mixed = torch.matmul(weights, value)
    if heads != shared:
        mixed = mixed.reshape(batch, heads, length, value.shape[3])
    return mixed.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def traceable_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention in this way for a while; those with attention of their own go on as they are."""
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
