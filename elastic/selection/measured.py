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
    halves: tuple[float, float] | None = None
    """The values of two halves of the examples, which tell noise from what subnets differ in; None if not known."""

    @property
    def score(self) -> float:
        """The value, or its negative where lower is better: higher is better."""
        return self.value if self.higher_is_better else -self.value

    def better_than(self, other: Quality) -> bool:
        """Whether this quality is strictly better than ``other``."""
        return self.score > other.score

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "metric": self.metric,
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "split": self.split,
            "num_examples": self.num_examples,
            **({} if self.interval is None else {"interval": list(self.interval)}),
            **({} if self.halves is None else {"halves": list(self.halves)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quality:
        """Read the JSON form.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        pairs = {name: tuple(data[name]) for name in ("interval", "halves") if data.get(name) is not None}
        return cls(**{**data, **pairs})


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
    expected: float | None = None
    """The quality that a search expects on other examples (see `elastic.selection.shrinkage`); None if not known."""

    @property
    def score(self) -> float:
        """By what subnets are compared: the expected quality, or the measured one; higher is better."""
        if self.expected is None:
            return self.quality.score
        return self.expected if self.quality.higher_is_better else -self.expected

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
            **({} if self.expected is None else {"expected_quality": self.expected}),
        }
