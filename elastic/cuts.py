"""Which slices of a universal model make each tensor of a smaller one: what every extraction cuts by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from elastic.families import Family, output_dim
from elastic.nested import Stream
from elastic.space import Subnet


@dataclass(frozen=True)
class Cut:
    """Where a tensor of the smaller model lies in the universal one."""

    source: str
    """Name of the universal model's tensor."""
    ranges: tuple[tuple[slice, ...], ...]
    """Of each dimension, the ranges that stay, one after the other: several where a projection is fused."""

    def take(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what stays of the universal model's tensor: a view where every dimension is one range."""
        for dim, ranges in enumerate(self.ranges):
            parts = [weight.narrow(dim, part.start, part.stop - part.start) for part in ranges]
            weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        return weight


def find_cuts(family: Family, model: PreTrainedModel, small: PreTrainedModel, subnet: Subnet) -> dict[str, Cut]:
    """Return the cut of every tensor of ``small``, which is ``subnet`` of ``model``; both may be on the meta device.

    Rows of projections are the first units of each block, and so are the dimensions of a narrower stream; everything
    else is a prefix.
    """
    path, layers = family.find_layers(model)
    prefix = path + "."
    heads_per_group = family.dims(model.config).heads_per_group
    head_blocks, ffn_blocks = family.head_blocks(model.config), family.ffn_blocks(model.config)
    stream = None if subnet.hidden is None else Stream.of(family, type(model), model.config)

    def of_stream(source: str, shape: torch.Size) -> list[tuple[slice, ...]]:
        ranges: list[tuple[slice, ...]] = [(slice(0, size),) for size in shape]
        for dim, blocks in stream.dims(source) if stream else ():
            ranges[dim] = tuple(block.rows(subnet.hidden or block.num_units) for block in blocks)
        return ranges

    def cut(name: str, shape: torch.Size) -> Cut:
        if not name.startswith(prefix):
            return Cut(name, tuple(of_stream(name, shape)))
        index, rest = name[len(prefix) :].split(".", 1)
        layer = subnet.kept_layers[int(index)]
        source = f"{prefix}{layer}.{rest}"
        ranges = of_stream(source, shape)
        projection, _, parameter = rest.rpartition(".")
        if projection in head_blocks or projection in ffn_blocks:
            dim = output_dim(layers[layer].get_submodule(projection)) if parameter == "weight" else 0
            if projection in head_blocks:
                blocks, units = head_blocks[projection], subnet.heads[layer] // heads_per_group
            else:
                blocks, units = ffn_blocks[projection], subnet.ffn[layer]
            ranges[dim] = tuple(block.rows(units) for block in blocks)
        return Cut(source, tuple(ranges))

    return {name: cut(name, tensor.shape) for name, tensor in small.state_dict().items()}
