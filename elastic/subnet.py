"""Subnets: one choice of every elastic part of a model. Pure data, no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from elastic.errors import SpaceError, did_you_mean


@dataclass(frozen=True)
class ModelDims:
    """The sizes of a model along the elastic axes: what a search space is resolved against."""

    num_layers: int
    ffn: int
    """Neurons of one FFN (``intermediate_size``)."""
    heads: int
    """Query heads of one attention."""
    kv_heads: int
    """Key-value heads of one attention; equal to ``heads`` without grouped-query attention."""
    hidden: int
    """Width of the residual stream (``hidden_size``), and of the embedding that is pooled from it."""
    hidden_fixed: str | None = None
    """Why the residual stream keeps its width, where it does."""
    heads_together: str | None = None
    """Why all heads stay or leave together, where they do; then they are one key-value group."""

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head, and therefore leave together."""
        return self.heads // self.kv_heads

    def check_heads(self, heads: int, where: str) -> None:
        """Check that a number of query heads can be run.

        Raises:
            SpaceError: if it splits heads that leave together.
        """
        if heads % self.heads_per_group and self.heads_together:
            raise SpaceError(f"{where} is not possible, because {self.heads_together}; choose {self.heads}.")
        if heads % self.heads_per_group:
            raise SpaceError(
                f"{where} does not divide into key-value groups of {self.heads_per_group}; choose multiples of "
                f"{self.heads_per_group} up to {self.heads}."
            )


WIDTHS = ("hidden", "embedding_dim")
"""Axes with one choice for the whole model."""


@dataclass(frozen=True)
class Subnet:
    """One sub-model: the FFN width and the number of query heads of every layer of the universal model.

    A width of 0 skips the MLP sub-layer, 0 heads skip the attention sub-layer, and a layer with
    both skipped is skipped whole; an early exit skips all layers after it. What is as large as the
    model has it is None. So every computation has exactly one ``Subnet``, and equal subnets compute
    the same.
    """

    ffn: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: int | None = None
    """Width of the residual stream; None for the model's own."""
    embedding_dim: int | None = None
    """How many leading dimensions of an embedding are kept (arXiv 2205.13147); None for all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ffn", tuple(self.ffn))
        object.__setattr__(self, "heads", tuple(self.heads))
        if len(self.ffn) != len(self.heads):
            raise SpaceError(
                f"a subnet needs one FFN width and one head count for each layer, not {len(self.ffn)} widths and "
                f"{len(self.heads)} head counts."
            )
        for axis, values in (("ffn", self.ffn), ("heads", self.heads)):
            for layer, value in enumerate(values):
                if type(value) is not int or value < 0:
                    raise SpaceError(f"{axis}={value!r} of layer {layer} must be a whole number, 0 or more.")
        for axis in WIDTHS:
            width = getattr(self, axis)
            if width is not None and (type(width) is not int or width < 1):
                raise SpaceError(f"{axis}={width!r} must be a whole number, 1 or more.")

    @property
    def num_layers(self) -> int:
        """Layers of the universal model, kept or skipped."""
        return len(self.ffn)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Indices of the layers that compute anything."""
        return tuple(i for i in range(self.num_layers) if self.ffn[i] or self.heads[i])

    @property
    def is_uniform(self) -> bool:
        """Whether every kept layer has the same width and heads, and no single sub-layer is skipped."""
        kept = {(self.ffn[i], self.heads[i]) for i in self.kept_layers}
        return len(kept) == 1 and all(kept.copy().pop())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: ``{"ffn": [...], "heads": [...]}``, and the widths that are not the model's own."""
        widths = {axis: width for axis in WIDTHS if (width := getattr(self, axis)) is not None}
        return {"ffn": list(self.ffn), "heads": list(self.heads), **widths}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Subnet:
        """Read the JSON form.

        Raises:
            SpaceError: if an axis is missing, unknown, or not a list of whole numbers.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping):
            raise SpaceError(f'a subnet is written as {{"ffn": [...], "heads": [...]}}, not as {data!r}.')
        for name in data:
            if name not in known:
                raise SpaceError(f"unknown axis '{name}' in a subnet{did_you_mean(name, known)}")
        for name in ("ffn", "heads"):
            if not isinstance(data.get(name), Sequence) or isinstance(data[name], str):
                raise SpaceError(f"a subnet needs a list '{name}' with one number for each layer.")
        return cls(**{**data, "ffn": tuple(data["ffn"]), "heads": tuple(data["heads"])})

    def describe(self) -> str:
        """Return a short readable form, such as ``"6/8 layers, ffn 256, heads 4"``."""
        kept = self.kept_layers

        def values(choices: tuple[int, ...]) -> str:
            used = [choices[i] for i in kept]
            if len(set(used)) == 1:
                return str(used[0])
            runs = ((value, len(list(run))) for value, run in itertools.groupby(used))
            return "+".join(f"{value}x{count}" if count > 1 else str(value) for value, count in runs)

        parts = [f"{len(kept)}/{self.num_layers} layers", f"ffn {values(self.ffn)}", f"heads {values(self.heads)}"]
        parts += [] if self.hidden is None else [f"hidden {self.hidden}"]
        parts += [] if self.embedding_dim is None else [f"{self.embedding_dim} dimensions"]
        return ", ".join(parts)


@dataclass(frozen=True)
class DropOrder:
    """In which order layers and sub-layers leave, the least important first; each a permutation of the layers."""

    layers: tuple[int, ...]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            order = tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, order)
            if sorted(order) != list(range(len(order))) or len(order) != len(self.layers):
                raise SpaceError(
                    f"the drop order of {field.name} must hold every layer index from 0 once, not {list(order)}."
                )

    def to_dict(self) -> dict[str, list[int]]:
        """Return the JSON form."""
        return {name: list(order) for name, order in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[int]]) -> DropOrder:
        """Read the JSON form.

        Raises:
            SpaceError: if an order is missing, or does not hold every layer once.
        """
        names = [field.name for field in fields(cls)]
        if set(data) != set(names):
            raise SpaceError(f"a drop order needs {', '.join(names)}, and has {', '.join(data) or 'nothing'}.")
        return cls(**{name: tuple(data[name]) for name in names})


def check_subnet(subnet: Subnet, dims: ModelDims) -> None:
    """Check that a model of these sizes can run the subnet.

    Raises:
        SpaceError: if the layer count differs, a width or head count is above the maximum, heads do
            not divide into key-value groups, or nothing at all is kept.
    """
    if subnet.num_layers != dims.num_layers:
        raise SpaceError(f"the subnet has {subnet.num_layers} layers, and the model has {dims.num_layers}.")
    for layer, (ffn, heads) in enumerate(zip(subnet.ffn, subnet.heads, strict=True)):
        if ffn > dims.ffn:
            raise SpaceError(f"ffn={ffn} of layer {layer} is above the maximum of this model, which is {dims.ffn}.")
        if heads > dims.heads:
            raise SpaceError(
                f"heads={heads} of layer {layer} is above the maximum of this model, which is {dims.heads}."
            )
        dims.check_heads(heads, f"heads={heads} of layer {layer}")
    _check_widths(subnet, dims)
    if not subnet.kept_layers:
        raise SpaceError("the subnet skips every layer; keep at least one.")


def _check_widths(subnet: Subnet, dims: ModelDims) -> None:
    if subnet.hidden is not None:
        if dims.hidden_fixed:
            raise SpaceError(f"hidden={subnet.hidden} is not possible, because {dims.hidden_fixed}; leave it out.")
        if subnet.hidden >= dims.hidden:
            raise SpaceError(f"hidden={subnet.hidden} is not below the model's own, {dims.hidden}; leave it out.")
    width = subnet.hidden or dims.hidden
    if subnet.embedding_dim is not None and subnet.embedding_dim >= width:
        raise SpaceError(
            f"embedding_dim={subnet.embedding_dim} is not below the embedding's own width, {width}; leave it out."
        )


def read_subnet(text: str) -> Subnet:
    """Read a subnet from JSON text.

    Raises:
        SpaceError: if the text is not the JSON form of a subnet.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpaceError(f"the subnet is not valid JSON: {error}.") from None
    if isinstance(data, dict) and "subnet" in data:
        data = data["subnet"]
    return Subnet.from_dict(data)
