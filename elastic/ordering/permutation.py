"""Function-preserving permutations: units change places, and what follows them is told."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from elastic.errors import ElasticError
from elastic.families import Block, output_dim
from elastic.ordering.sites import Axis, Site, find_sites

Order = Sequence[int]
"""Indices of units, the most important first."""


def permute(model: PreTrainedModel, orders: Mapping[tuple[int, Axis], Order]) -> None:
    """Put neurons and heads into the given orders, in place; the model computes what it did.

    Rows of the projections into a unit and columns of the projection out of it move together, gate and
    up alike, and so do the query heads of a key-value group.

    Args:
        model: any supported model, elastic or not.
        orders: for ``(layer, axis)`` the units in their new order; layers and axes left out stay.

    Raises:
        ElasticError: if an order is not a permutation of the units.
    """
    sites = {(site.layer, site.axis): site for site in find_sites(model)}
    for key, order in orders.items():
        if sorted(order) != list(range(sites[key].num_units)):
            raise ElasticError(
                f"the order of {key[1]} in layer {key[0]} is not a permutation of {sites[key].num_units} units."
            )
    with torch.no_grad():
        for key, order in orders.items():
            _permute(sites[key], torch.as_tensor(order))


def _permute(site: Site, order: torch.Tensor) -> None:
    for path, blocks in site.inputs.items():
        projection = site.module.get_submodule(path)
        rows = torch.cat([positions(block, order) for block in blocks])
        move(projection.weight, rows, dim=output_dim(projection))  # type: ignore[arg-type]
        if getattr(projection, "bias", None) is not None:
            move(projection.bias, rows, dim=0)  # type: ignore[arg-type]
    move(site.output.weight, positions(site.columns, order), dim=1 - output_dim(site.output))  # type: ignore[arg-type]


def positions(block: Block, units: torch.Tensor) -> torch.Tensor:
    """Return the rows of these units, in their order."""
    return (block.start + units[:, None] * block.size + torch.arange(block.size)).reshape(-1)


def move(weight: torch.Tensor, index: torch.Tensor, dim: int) -> None:
    """Put the rows (or columns) of a weight into this order, in place."""
    weight.copy_(weight.index_select(dim, index.to(weight.device)))


def order_within(scores: torch.Tensor, boundaries: Sequence[int] = ()) -> list[int]:
    """Return units by falling score, each staying between the boundaries where it is.

    Args:
        scores: one for each unit.
        boundaries: how many units each trained subnet has. Its units remain its units, so that a nesting
            that has been trained is not disturbed.
    """
    edges = sorted({0, *boundaries, len(scores)})
    order: list[int] = []
    for start, end in itertools.pairwise(edges):
        by_score = torch.sort(scores[start:end], descending=True, stable=True).indices
        order += (start + by_score).tolist()
    return order
