"""Search spaces: which parts of a model are elastic, and the choices of each. Pure data, no torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from elastic.errors import SpaceError, did_you_mean
from elastic.subnet import WIDTHS, DropOrder, ModelDims, Subnet, check_subnet, read_subnet

__all__ = [
    "ALIGNMENTS",
    "AXES",
    "WIDTHS",
    "Choice",
    "DropOrder",
    "ModelDims",
    "ResolvedSpace",
    "SearchSpace",
    "Subnet",
    "Widths",
    "check_subnet",
    "evenly_spaced",
    "read_subnet",
]

Choice = int | float
"""A whole number (neurons, heads, layers) or a fraction of the model's maximum in (0, 1]."""

ALIGNMENTS = {"cpu": 16, "tensorrt": 64}
"""Of what widths should be multiples: ONNX Runtime packs weights in panels of 16 columns; Ampere's tensor cores
are fastest at multiples of 128 bytes (NVIDIA, Matrix Multiplication Background User's Guide), which is 64 in fp16."""


class _Unnamed(tuple[Choice, ...]):
    """What an axis that is not named has: the model's maximum alone."""


_UNNAMED = _Unnamed((1.0,))


@dataclass(frozen=True)
class SearchSpace:
    """Which axes are elastic, and the choices of each, as fractions of the model's maximum or as whole numbers.

    An axis that is not named keeps its maximum; a 1 among fractions is the whole. ``layers``,
    ``attention`` and ``mlp`` count how many layers, attention and MLP sub-layers are kept; ``exit``
    how many layers run at all before the model's head reads the stream, of which ``layers`` are kept.
    """

    ffn: tuple[Choice, ...] = _UNNAMED
    heads: tuple[Choice, ...] = _UNNAMED
    layers: tuple[Choice, ...] = _UNNAMED
    attention: tuple[Choice, ...] = _UNNAMED
    mlp: tuple[Choice, ...] = _UNNAMED
    exit: tuple[Choice, ...] = _UNNAMED
    hidden: tuple[Choice, ...] = _UNNAMED
    embedding_dim: tuple[Choice, ...] = _UNNAMED

    def __post_init__(self) -> None:
        for axis in AXES:
            choices = getattr(self, axis)
            if isinstance(choices, _Unnamed):
                continue
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

    @property
    def named(self) -> tuple[str, ...]:
        """The axes that were given, be it with the maximum alone."""
        return tuple(axis for axis in AXES if not isinstance(getattr(self, axis), _Unnamed))

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
        wanted = choices.resolve(self.dims)
        for axis in choices.named:
            for choice in getattr(wanted, axis):
                if choice not in getattr(self, axis):
                    raise SpaceError(
                        f"{axis}={choice} is not in the space; its choices are {list(getattr(self, axis))}."
                    )
        return replace(self, **{axis: getattr(wanted, axis) for axis in choices.named})

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
