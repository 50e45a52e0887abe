"""Chooses the best subnet that is expected to meet a deadline, from the latencies of earlier calls."""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
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

RETRY_CALLS = 32
"""After so many calls of others at the same sizes a subnet may be tried again, and its record begins anew."""

USUAL_CALLS = 9
"""Of so many last calls the median is what a subnet usually takes, whatever a single one took."""


@dataclass
class _Running:
    mean: float
    deviation: float = 0.0
    count: int = 1
    last: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_CALLS))
    call: int = 0
    """The number of the last call of this subnet, among those of all at these sizes."""
    others: dict[str | None, float] = field(default_factory=dict)
    """What the other subnets usually took then, or took when they first ran after it."""

    @property
    def usual(self) -> float:
        return statistics.median(self.last)

    def begin(self, milliseconds: float) -> None:
        self.mean, self.deviation, self.count = milliseconds, 0.0, 1

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
    _calls: dict[Sizes, int] = field(default_factory=dict)
    _started: set[str | None] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, name: str | None, sizes: Mapping[str, int], milliseconds: float) -> None:
        """Take one call into account; the first one of a subnet, which allocates its memory, is left out.

        After `RETRY_CALLS` calls of others, the record of a subnet begins anew.
        """
        key = _key(sizes)
        with self._lock:
            if name not in self._started:
                self._started.add(name)
                return
            call = self._calls[key] = self._calls.get(key, 0) + 1
            running = self._running.get((name, key))
            if running is None:
                running = self._running[name, key] = _Running(milliseconds)
            elif call - running.call > RETRY_CALLS:
                running.begin(milliseconds)
            else:
                running.add(milliseconds)
            running.last.append(milliseconds)
            running.call = call
            all_here = {other: one for (other, at), one in self._running.items() if at == key}
            running.others = {other: one.usual for other, one in all_here.items()}
            for one in all_here.values():
                one.others.setdefault(name, milliseconds)

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

        A better one whose record says otherwise is tried again where its last call is `RETRY_CALLS` calls ago, and what
        it usually took is in time, in proportion to what the subnet that ran last usually took then and takes now.
        """
        expected = {member.name: self._estimate(member, members, sizes) for member in members}
        rank = _rank(members)
        in_time = [member for member in members if expected[member.name] <= deadline_ms]
        in_time += [member for member in members if self._may_try_again(member, sizes, deadline_ms)]
        if in_time:
            return max(in_time, key=rank)
        return min(members, key=lambda member: (expected[member.name], flops(member)))

    def _may_try_again(self, member: Member, sizes: Mapping[str, int], deadline_ms: float) -> bool:
        key = _key(sizes)
        with self._lock:
            running = self._running.get((member.name, key))
            if running is None or self._calls[key] - running.call < RETRY_CALLS:
                return False
            since = [(name, one) for (name, at), one in self._running.items() if at == key and name in running.others]
            name, last = max(since, key=lambda item: item[1].call)
            return running.usual * last.usual / running.others[name] <= deadline_ms

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
