"""What flows into the output projections of each layer: the activations of neurons and of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from elastic.errors import ElasticError
from elastic.families import Block, Family, get_family

Axis = Literal["ffn", "heads"]
Batches = Iterable[Mapping[str, torch.Tensor]]
"""Calibration inputs, batch after batch; iterated over several times, never held as a whole."""


@dataclass(frozen=True)
class Site:
    """One elastic axis of one layer: the projections whose rows are its units, and the one whose columns are."""

    layer: int
    axis: Axis
    inputs: Mapping[str, tuple[Block, ...]]
    """Paths of the projections into the neurons or heads, with the rows of each unit."""
    output: nn.Module
    """The projection out of them."""
    columns: Block
    """The columns of ``output``, unit after unit."""
    module: nn.Module
    """The layer."""

    @property
    def num_units(self) -> int:
        """Neurons, or key-value groups."""
        return self.columns.num_units


def find_sites(model: PreTrainedModel) -> list[Site]:
    """Return the FFN and the heads of every layer, in the order of computation.

    Raises:
        FamilyError: if the architecture is not supported.
    """
    family, config = get_family(model.config), model.config
    dims, head_dim = family.dims(config), family.head_dim(config)
    groups = Block(0, dims.kv_heads, head_dim * dims.heads_per_group)
    neurons = Block(0, dims.ffn, 1)
    sites = []
    for index, layer in enumerate(family.find_layers(model)[1]):
        head_output, ffn_output = layer.get_submodule(family.head_output), layer.get_submodule(family.ffn_output)
        sites.append(Site(index, "heads", family.head_blocks(config), head_output, groups, layer))
        sites.append(Site(index, "ffn", family.ffn_blocks(config), ffn_output, neurons, layer))
    return sites


def layers_of(model: PreTrainedModel) -> tuple[Family, nn.ModuleList]:
    """Return the family of a model and its layers."""
    family = get_family(model.config)
    return family, family.find_layers(model)[1]


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[int, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call ``hook(index, inputs)`` before each of ``modules`` runs, inside the ``with`` block."""

    def pre_hook(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def call(module: nn.Module, args: tuple[Any, ...]) -> None:
            hook(index, args)

        return call

    handles = [module.register_forward_pre_hook(pre_hook(index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Any:
    """Run a batch through the model, without a key-value cache."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    return model(**inputs, **({"use_cache": False} if model.can_generate() else {}))


def tokens(activations: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return ``(tokens, width)`` activations without padding, from ``(batch, tokens, width)``."""
    flat = activations.reshape(-1, activations.shape[-1])
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.numel() != flat.shape[0]:
        return flat
    return flat[mask.reshape(-1).to(flat.device) != 0]


def check_finite(model: PreTrainedModel) -> None:
    """Check that every weight is a number.

    Raises:
        ElasticError: if one is not; names its tensor.
    """
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise ElasticError(f"the tensor '{name}' has {bad} values that are NaN or infinite; the model is damaged.")
