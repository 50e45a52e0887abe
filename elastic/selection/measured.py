"""A subnet together with what is known of it: its cost, and its quality where that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elastic.cost.cost import Cost
from elastic.space import Subnet


@dataclass(frozen=True)
class Quality:
    """A measured quality, and on what it was measured."""

    metric: str
    value: float
    higher_is_better: bool
    split: str
    num_examples: int
    interval: tuple[float, float] | None = None
    """Within which the value lies with 95 % confidence, over draws of the examples; None where that is not known."""

    def better_than(self, other: Quality) -> bool:
        """Whether this quality is strictly better than ``other``."""
        return self.value > other.value if self.higher_is_better else self.value < other.value

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "metric": self.metric,
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "split": self.split,
            "num_examples": self.num_examples,
            **({} if self.interval is None else {"interval": list(self.interval)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quality:
        """Read the JSON form.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        interval = data.get("interval")
        return cls(**{**data, "interval": None if interval is None else tuple(interval)})


@dataclass(frozen=True)
class Measured:
    """A subnet with its cost and its measured quality, both in one precision."""

    subnet: Subnet
    cost: Cost
    quality: Quality
    kind: str
    """``granularity``, ``uniform`` or ``mix``."""
    name: str = ""
    """The granularity's name, where it has one."""
    precision: str = "fp32"
    """In which the quality was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "kind": self.kind,
            "subnet": self.subnet.to_dict(),
            "description": self.subnet.describe(),
            "cost": self.cost.to_dict(),
            "quality": self.quality.to_dict(),
            "precision": self.precision,
        }
