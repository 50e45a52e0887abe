"""Linear layers as architectures write them: which way their weights lie."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR_CLASSES = (nn.Linear, Conv1D)
"""What can be nested. A Conv1D (GPT-2) is a Linear whose weight is transposed: ``(in, out)``."""


def output_dim(linear: nn.Module) -> int:
    """Return the dimension of the weight along which the outputs lie: 0 of a Linear, 1 of a Conv1D."""
    return 1 if isinstance(linear, Conv1D) else 0


def num_outputs(linear: nn.Module) -> int:
    """Return how many outputs a linear layer has."""
    return int(linear.weight.shape[output_dim(linear)])  # type: ignore[union-attr,index]


def num_inputs(linear: nn.Module) -> int:
    """Return how many inputs a linear layer has."""
    return int(linear.weight.shape[1 - output_dim(linear)])  # type: ignore[union-attr,index]
