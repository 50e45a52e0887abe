"""The routers of a recipe: which sub-layers they decide about, and how much may be computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elastic.recipe.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class RoutersSection(Section):
    """Routers decide for each sequence which sub-layers compute (Router-Tuning, arXiv 2410.13184)."""

    what: Literal["attention", "mlp", "block"] = Field(
        "attention", description="What a router switches: attention, the MLP, or both of a layer together."
    )
    layers: list[int] | None = Field(None, description="Layers with a router; by default all but the last.")
    mode: Literal["tune", "joint"] = Field(
        "tune", description="tune: everything but the routers is frozen. joint: all is trained."
    )
    gradient: Literal["interpolated", "straight_through"] = Field(
        "interpolated",
        description="How the loss reaches routers. interpolated: its mean is what skipping changes. straight_through: "
        "the derivative at the gate's value, as in the paper.",
    )
    capacity: Share | list[Share] = Field(
        description="Share of sequences for which a routed sub-layer computes; a list has one for each router."
    )
    per_layer: bool = Field(False, description="Hold every router to the capacity, not only their mean.")
    penalty: Literal["absolute", "above"] = Field(
        "absolute", description="absolute: of the distance to the capacity. above: of what is more than it."
    )
    weight: float = Field(1.0, ge=0, description="Weight of the penalty beside the loss.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Score from which on a sub-layer computes.")
    initial_bias: float = Field(1.0, description="Routers begin with the score sigmoid(initial_bias): on.")

    @property
    def mean_capacity(self) -> float:
        """The capacity over all routers."""
        return sum(self.capacity) / len(self.capacity) if isinstance(self.capacity, list) else self.capacity
