"""Search spaces and subnets: which parts of a model are elastic, and one choice of them. Pure data, no torch."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from elastic.errors import SpaceError, did_you_mean

Choice = int | float
"""A whole number (neurons, heads, layers) or a fraction of the model's maximum in (0, 1]."""


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


@dataclass(frozen=True)
class SearchSpace:
    """Which axes are elastic, and the choices of each, as fractions of the model's maximum or as whole numbers.

    An axis that is not named keeps its maximum; a 1 among fractions is the whole. ``layers``,
    ``attention`` and ``mlp`` count how many layers, attention and MLP sub-layers are kept; ``exit``
    how many layers run at all before the model's head reads the stream, of which ``layers`` are kept.
    """

    ffn: tuple[Choice, ...] = (1.0,)
    heads: tuple[Choice, ...] = (1.0,)
    layers: tuple[Choice, ...] = (1.0,)
    attention: tuple[Choice, ...] = (1.0,)
    mlp: tuple[Choice, ...] = (1.0,)
    exit: tuple[Choice, ...] = (1.0,)
    hidden: tuple[Choice, ...] = (1.0,)
    embedding_dim: tuple[Choice, ...] = (1.0,)

    def __post_init__(self) -> None:
        for axis in AXES:
            choices = getattr(self, axis)
            if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
                raise SpaceError(f"axis '{axis}' needs a list of choices such as [0.5, 1.0], not {choices!r}.")
            for choice in choices:
                if isinstance(choice, bool) or not isinstance(choice, (int, float)):
                    raise SpaceError(f"axis '{axis}' has the choice {choice!r}; a choice is a number.")
                if isinstance(choice, float) and not 0.0 < choice <= 1.0:
                    raise SpaceError(
                        f"axis '{axis}' has the fraction {choice}; a fraction lies in (0, 1], and a whole number is "
                        "written without a point."
                    )
                if isinstance(choice, int) and choice < 1:
                    raise SpaceError(f"axis '{axis}' has the choice {choice}; the smallest is 1.")
            has_fractions = any(isinstance(choice, float) for choice in choices)
            object.__setattr__(self, axis, tuple(1.0 if c == 1 and has_fractions else c for c in choices))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Read ``{"ffn": [...], ...}``.

        Raises:
            SpaceError: if an axis is unknown (names the nearest) or its choices are not numbers.
        """
        for name in data:
            if name not in AXES:
                raise SpaceError(f"unknown axis '{name}' in the search space{did_you_mean(name, AXES)}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})

    def to_dict(self) -> dict[str, list[Choice]]:
        """Return the JSON form, axes at their maximum left out."""
        return {axis: list(v) for axis, v in asdict(self).items() if v != (1.0,)}

    def resolve(self, dims: ModelDims, drop_order: DropOrder | None = None) -> ResolvedSpace:
        """Turn fractions into whole numbers for one model.

        Args:
            dims: the sizes of the model.
            drop_order: in which order layers leave; without one, those that stay are evenly spaced.

        Raises:
            SpaceError: if a choice is above the maximum, is not a whole number of neurons, heads or
                layers, or does not divide into key-value groups.
        """
        maximum = {
            "ffn": dims.ffn,
            "heads": dims.heads,
            "layers": dims.num_layers,
            "attention": dims.num_layers,
            "mlp": dims.num_layers,
            "exit": dims.num_layers,
            "hidden": dims.hidden,
            "embedding_dim": dims.hidden,
        }
        if drop_order is not None and len(drop_order.layers) != dims.num_layers:
            raise SpaceError(
                f"the drop order is of {len(drop_order.layers)} layers, and the model has {dims.num_layers}."
            )
        if dims.hidden_fixed and self.hidden not in ((1.0,), (dims.hidden,)):
            raise SpaceError(f"the axis 'hidden' is not elastic here, because {dims.hidden_fixed}.")
        return ResolvedSpace(
            dims=dims,
            drop_order=drop_order,
            **{axis: _resolve_axis(axis, getattr(self, axis), maximum[axis], dims) for axis in AXES},
        )


AXES = tuple(field.name for field in fields(SearchSpace))


def _resolve_axis(axis: str, choices: Sequence[Choice], maximum: int, dims: ModelDims) -> tuple[int, ...]:
    resolved = set()
    for choice in choices:
        value = choice * maximum if isinstance(choice, float) else choice
        if value > maximum:
            raise SpaceError(f"{axis}={choice} is above the maximum of this model, which is {maximum}.")
        if abs(value - round(value)) > 1e-6 or round(value) < 1:
            raise SpaceError(
                f"{axis}={choice} of {maximum} is {value:g}, not a whole number; choose a fraction that divides "
                f"{maximum}."
            )
        value = round(value)
        if axis == "heads":
            dims.check_heads(value, f"heads={choice} is {value} query heads, which")
        resolved.add(value)
    return tuple(sorted(resolved))


def evenly_spaced(num_items: int, num_kept: int) -> tuple[int, ...]:
    """Return ``num_kept`` of ``range(num_items)``, evenly spaced, first and last included.

    The "every other" rule of LayerDrop (arXiv 1909.11556, section 3.2), for any count.
    """
    if num_kept == 1:
        return (0,)
    return tuple((i * (num_items - 1) + (num_kept - 1) // 2) // (num_kept - 1) for i in range(num_kept))


Widths = tuple[int | None, int | None]
"""``(hidden, embedding_dim)`` as a subnet holds them."""


@dataclass(frozen=True)
class ResolvedSpace:
    """A search space over one model: every choice a whole number, ascending.

    FFN width and heads are free in every layer. Which layers are kept follows from how many: those
    that leave last, or evenly spaced ones where there is no drop order; and likewise for the
    sub-layers among them.
    """

    dims: ModelDims
    ffn: tuple[int, ...]
    heads: tuple[int, ...]
    layers: tuple[int, ...]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    exit: tuple[int, ...]
    hidden: tuple[int, ...]
    embedding_dim: tuple[int, ...]
    drop_order: DropOrder | None = None

    def uniform(self, **choices: int) -> Subnet:
        """Return the subnet with one choice for all layers; axes not given take their largest.

        Raises:
            SpaceError: if an axis is unknown or a choice is not in the space.
        """
        for axis, choice in choices.items():
            if axis not in AXES:
                raise SpaceError(f"unknown axis '{axis}'{did_you_mean(axis, AXES)}")
            if choice not in getattr(self, axis):
                raise SpaceError(f"{axis}={choice} is not in the space; its choices are {list(getattr(self, axis))}.")
        chosen = {axis: choices.get(axis, getattr(self, axis)[-1]) for axis in AXES}
        attention, mlp = self._kept_sublayers(chosen["exit"], chosen["layers"], chosen["attention"], chosen["mlp"])
        return Subnet(
            tuple(chosen["ffn"] if i in mlp else 0 for i in range(self.dims.num_layers)),
            tuple(chosen["heads"] if i in attention else 0 for i in range(self.dims.num_layers)),
            *self._widths(chosen["hidden"], chosen["embedding_dim"]),
        )

    def _widths(self, hidden: int, embedding_dim: int) -> Widths:
        """Return both widths as a subnet holds them: None where nothing is cut off."""
        return (
            None if hidden == self.dims.hidden else hidden,
            None if embedding_dim >= hidden else embedding_dim,
        )

    def widths(self) -> list[Widths]:
        """Return the distinct (hidden, embedding_dim) of the space, as subnets hold them; the largest last."""
        return list(dict.fromkeys(self._widths(*point) for point in itertools.product(self.hidden, self.embedding_dim)))

    def granularity(self, choices: Mapping[str, Choice]) -> Subnet:
        """Return a uniform subnet from choices as people write them (fractions or whole numbers)."""
        known = SearchSpace.from_dict({axis: [choice] for axis, choice in choices.items()}).resolve(self.dims)
        return self.uniform(**{axis: getattr(known, axis)[0] for axis in choices})

    def within(self, choices: SearchSpace) -> ResolvedSpace:
        """Return the part of the space that has only these choices; axes that are not named keep all of theirs.

        Raises:
            SpaceError: if a choice is not in the space.
        """
        wanted, named = choices.resolve(self.dims), choices.to_dict()
        for axis in named:
            for choice in getattr(wanted, axis):
                if choice not in getattr(self, axis):
                    raise SpaceError(
                        f"{axis}={choice} is not in the space; its choices are {list(getattr(self, axis))}."
                    )
        return replace(self, **{axis: getattr(wanted, axis) for axis in named})

    def aligned(self, multiple_of: int) -> ResolvedSpace:
        """Return the part of the space whose FFN widths and hidden sizes are multiples, or the model's own.

        Raises:
            SpaceError: if an axis has no such choice.
        """

        def kept(axis: str, choices: tuple[int, ...], own: int) -> tuple[int, ...]:
            found = tuple(choice for choice in choices if choice == own or not choice % multiple_of)
            if not found:
                raise SpaceError(f"no choice of {axis} is a multiple of {multiple_of}; they are {list(choices)}.")
            return found

        return replace(
            self, ffn=kept("ffn", self.ffn, self.dims.ffn), hidden=kept("hidden", self.hidden, self.dims.hidden)
        )

    def _kept_sublayers(
        self, exit_layer: int, layers: int, attention: int, mlp: int
    ) -> tuple[frozenset[int], frozenset[int]]:
        order, layers = self.drop_order, min(layers, exit_layer)
        if order is None:
            kept = evenly_spaced(exit_layer, layers)

            def among_kept(count: int) -> frozenset[int]:
                return frozenset(kept[i] for i in evenly_spaced(layers, min(count, layers)))

            return among_kept(attention), among_kept(mlp)
        left = [i for i in order.layers if i < exit_layer][exit_layer - layers :]

        def last_to_leave(leaving: tuple[int, ...], count: int) -> frozenset[int]:
            return frozenset([i for i in leaving if i in left][-count:])

        return last_to_leave(order.attention, attention), last_to_leave(order.mlp, mlp)

    @property
    def largest(self) -> Subnet:
        """The subnet with the largest choice of every axis."""
        return self.uniform()

    @property
    def smallest(self) -> Subnet:
        """The subnet with the smallest choice of every axis."""
        return self.uniform(**{axis: getattr(self, axis)[0] for axis in AXES})

    def uniform_subnets(self) -> list[Subnet]:
        """Return every uniform subnet once, in the order of the axes' choices."""
        grid = itertools.product(*(getattr(self, axis) for axis in AXES))
        return list(dict.fromkeys(self.uniform(**dict(zip(AXES, point, strict=True))) for point in grid))

    def skeletons(self) -> dict[tuple[frozenset[int], frozenset[int]], None]:
        """The distinct (kept attention, kept MLP) sub-layer sets of the space."""
        grid = itertools.product(self.exit, self.layers, self.attention, self.mlp)
        return dict.fromkeys(self._kept_sublayers(*point) for point in grid)

    @property
    def num_subnets(self) -> int:
        """How many different subnets the space holds, per-layer ones included."""
        per_layer = sum(len(self.heads) ** len(attn) * len(self.ffn) ** len(mlp) for attn, mlp in self.skeletons())
        return per_layer * len(self.widths())

    def sample(self, rng: random.Random) -> Subnet:
        """Draw a skeleton of kept sub-layers, a width and heads for each layer, and the model's widths, uniformly."""
        attention, mlp = rng.choice(list(self.skeletons()))
        layers = range(self.dims.num_layers)
        ffn = tuple(rng.choice(self.ffn) if i in mlp else 0 for i in layers)
        heads = tuple(rng.choice(self.heads) if i in attention else 0 for i in layers)
        widths = self.widths()
        return Subnet(ffn, heads, *(rng.choice(widths) if len(widths) > 1 else widths[0]))

    def min_slope_mixtures(self) -> Iterator[Subnet]:
        """Yield MatFormer's Mix'n'Match subnets: widths never decrease with depth, over two adjacent choices.

        The minimum-slope heuristic of arXiv 2310.07707, for FFN width and for heads, for every
        set of kept layers.
        """
        for attention, mlp in self.skeletons():
            layers = sorted(attention | mlp)
            for ffn, heads in itertools.product(
                _ladders(self.ffn, len(layers)),
                _ladders(self.heads, len(layers)),
            ):
                rank = {layer: i for i, layer in enumerate(layers)}
                for widths in self.widths():
                    yield Subnet(
                        tuple(ffn[rank[i]] if i in mlp else 0 for i in range(self.dims.num_layers)),
                        tuple(heads[rank[i]] if i in attention else 0 for i in range(self.dims.num_layers)),
                        *widths,
                    )

    def __contains__(self, subnet: object) -> bool:
        if not isinstance(subnet, Subnet) or subnet.num_layers != self.dims.num_layers:
            return False
        skeleton = (
            frozenset(i for i, h in enumerate(subnet.heads) if h),
            frozenset(i for i, f in enumerate(subnet.ffn) if f),
        )
        return (
            skeleton in self.skeletons()
            and (subnet.hidden, subnet.embedding_dim) in self.widths()
            and all(f in self.ffn for f in subnet.ffn if f)
            and all(h in self.heads for h in subnet.heads if h)
        )


def _ladders(choices: tuple[int, ...], length: int) -> list[tuple[int, ...]]:
    """The sequences of ``length`` that hold one choice, or step once from a choice to the next larger one."""
    ladders = [(choice,) * length for choice in choices]
    for small, large in itertools.pairwise(choices):
        ladders += [(small,) * k + (large,) * (length - k) for k in range(1, length)]
    return ladders


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
