"""Chooses the best subnet that is expected to meet a deadline, from the latencies of earlier calls."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .errors import BundleError
from .manifest import Member

Sizes = tuple[tuple[str, int], ...]

MEAN_WEIGHT, DEVIATION_WEIGHT = 1 / 8, 1 / 4
"""What the newest latency counts in the running mean and the running deviation (RFC 6298, section 2)."""

MARGIN = 2.0
"""Deviations above the mean that are expected of the next call."""


@dataclass
class _Running:
    mean: float
    deviation: float = 0.0
    count: int = 1

    def add(self, milliseconds: float) -> None:
        self.count += 1
        self.deviation += max(DEVIATION_WEIGHT, 1 / self.count) * (abs(milliseconds - self.mean) - self.deviation)
        self.mean += max(MEAN_WEIGHT, 1 / self.count) * (milliseconds - self.mean)

    @property
    def expected(self) -> float:
        return self.mean + MARGIN * self.deviation


@dataclass
class Latencies:
    """Running latencies of subnets, by the sizes of their inputs. Several threads may use it."""

    _running: dict[tuple[str | None, Sizes], _Running] = field(default_factory=dict)
    _started: set[str | None] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, name: str | None, sizes: Mapping[str, int], milliseconds: float) -> None:
        """Take one call into account; the first one of a subnet, which allocates its memory, is left out."""
        key = (name, _key(sizes))
        with self._lock:
            if name not in self._started:
                self._started.add(name)
            elif key in self._running:
                self._running[key].add(milliseconds)
            else:
                self._running[key] = _Running(milliseconds)

    def expected(self, name: str | None, sizes: Mapping[str, int]) -> float | None:
        """Return the milliseconds that a call is expected to stay below, or None if none was recorded."""
        with self._lock:
            running = self._running.get((name, _key(sizes)))
            return None if running is None else running.expected

    def choose(self, members: Sequence[Member], sizes: Mapping[str, int], deadline_ms: float) -> Member:
        """Return the best member that is expected to meet the deadline; if there is none, the fastest.

        Best is the highest measured quality; where that is not known of all, the largest. A member without a
        record at these sizes is expected to take what another one takes, in proportion to FLOPs; where there is none at
        these sizes, in proportion to the size of the inputs. If nothing is recorded, the cheapest is returned.
        """
        expected = {member.name: self._estimate(member, members, sizes) for member in members}
        in_time = [member for member in members if expected[member.name] <= deadline_ms]
        if in_time:
            return max(in_time, key=_rank(members))
        return min(members, key=lambda member: (expected[member.name], flops(member)))

    def _estimate(self, member: Member, members: Sequence[Member], sizes: Mapping[str, int]) -> float:
        key = _key(sizes)
        others = {other.name: other for other in members}
        with self._lock:
            if (member.name, key) in self._running:
                return self._running[member.name, key].expected
            best, estimate = (math.inf, math.inf, math.inf), math.inf
            for (name, other_key), running in self._running.items():
                if name not in others:
                    continue
                more_work = _positions(sizes) / _positions(dict(other_key))
                more_flops = flops(member) / flops(others[name])
                distance = (float(other_key != key), abs(math.log(more_work)), abs(math.log(more_flops)))
                if distance < best:
                    best, estimate = distance, running.expected * more_work * more_flops
        return estimate


def read_milliseconds(text: str) -> float:
    """Read a time such as ``8ms``, ``0.5s`` or ``8`` (milliseconds).

    Raises:
        BundleError: if it is none.
    """
    stripped, value = text.strip(), math.nan
    unit = next((unit for unit in ("ms", "s") if stripped.endswith(unit)), "")
    with suppress(ValueError):
        value = float(stripped.removesuffix(unit)) * (1e3 if unit == "s" else 1.0)
    if not 0 < value < math.inf:
        raise BundleError(f"'{text}' is not a time; write one such as 8ms or 0.5s.")
    return value


def flops(member: Member) -> float:
    """Return what a member costs, or 1 where its manifest does not say."""
    return float((member.cost or {}).get("flops") or 1)


def _rank(members: Sequence[Member]) -> Callable[[Member], tuple[float, float]]:
    qualities = [member.quality or {} for member in members]
    known = all("value" in quality for quality in qualities)
    comparable = known and len({(quality.get("metric"), quality.get("split")) for quality in qualities}) == 1
    sign = 1 if not comparable or qualities[0].get("higher_is_better", True) else -1

    def rank(member: Member) -> tuple[float, float]:
        quality = sign * float((member.quality or {})["value"]) if comparable else 0.0
        # Of two that are equally good, the cheaper.
        return (quality, -flops(member)) if comparable else (flops(member), 0.0)

    return rank


def _positions(sizes: Mapping[str, int]) -> int:
    """Return how many positions are computed: those in a cache are not."""
    return max(1, math.prod(size for name, size in sizes.items() if name not in ("past", "total")))


def _key(sizes: Mapping[str, int]) -> Sizes:
    return tuple(sorted(sizes.items()))
