"""Sizes that attention modules read from attributes while they run, as the active or the extracted choice has them."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from elastic.families import Family, HeadSize
from elastic.portable import ConfigView

Sizes = tuple[tuple[str, HeadSize], ...]
CONFIG = "config."


def sizes_by_module(family: Family) -> dict[str, Sizes]:
    """Return which attributes follow from the heads, for each module of a layer; ``config.x`` is one of its config."""
    found: dict[str, Sizes] = {}
    for path, size in family.head_sizes.items():
        module, _, name = path.rpartition(".")
        if module.endswith(".config"):
            module, name = module.removesuffix(".config"), CONFIG + name
        found[module] = (*found.get(module, ()), (name, size))
    return found


def _value(size: HeadSize, heads: int, head_dim: int, heads_per_group: int) -> int:
    return {
        HeadSize.HEADS: heads,
        HeadSize.KV_HEADS: heads // heads_per_group,
        HeadSize.WIDTH: heads * head_dim,
    }[size]


@functools.cache
def sized_class(cls: type[nn.Module], sizes: Sizes, head_dim: int, heads_per_group: int) -> type[nn.Module]:
    """Return a subclass of a skippable attention class whose sizes are those of the active choice."""

    def sized(size: HeadSize) -> property:
        return property(lambda self: _value(size, self.sublayer.choice, head_dim, heads_per_group))

    def config(self: Any) -> Any:
        heads = self.sublayer.choice
        return ConfigView(
            self.__dict__["config"],
            {name: _value(size, heads, head_dim, heads_per_group) for name, size in in_config.items()},
        )

    in_config = {name.removeprefix(CONFIG): size for name, size in sizes if name.startswith(CONFIG)}
    body: dict[str, Any] = {name: sized(size) for name, size in sizes if not name.startswith(CONFIG)}
    if in_config:
        body["config"] = property(config)
    return type(f"Sized{cls.__name__}", (cls,), {**body, "__module__": __name__})
