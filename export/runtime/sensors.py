"""What a Linux device says of itself: its name, its temperatures, and the energy that it takes."""

from __future__ import annotations

import itertools
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path("/")
INTERVAL_S = 0.01
"""How often power is read where no counter adds it up."""


def device_name(root: Path = ROOT) -> str:
    """Return the board's name, such as ``NVIDIA Jetson Orin Nano``; else that of the processor."""
    if model := _read(root / "proc/device-tree/model"):
        return model
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Return the degrees Celsius of every thermal zone that can be read, by its type."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number):
        value = _read_int(zone / "temp")
        # Zones that are switched off report nothing, or absolute zero.
        if value is not None and value > -100_000:
            name = _read(zone / "type") or zone.name
            found[name if name not in found else f"{name} ({zone.name})"] = value / 1000
    return found


@dataclass
class Energy:
    """The energy of a block of code; ``joules`` is there when the block has ended."""

    joules: float | None = None
    seconds: float = 0.0


class PowerMeter(Protocol):
    """Measures the energy that the device takes, its idle share included."""

    @property
    def rails(self) -> tuple[str, ...]:
        """What is added up."""

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure a block; None where a reading failed."""


def find_power_meter(root: Path = ROOT) -> PowerMeter | None:
    """Return the power meter of a Jetson (INA3221) or of a processor (RAPL), if there is one that can be read."""
    for meter in (_find_ina3221(root), _find_rapl(root)):
        if meter is not None:
            return meter
    return None


@dataclass(frozen=True)
class Rapl:
    """Counters of energy that the processor keeps (Linux powercap); many systems let only root read them."""

    zones: tuple[Path, ...]
    rails: tuple[str, ...]

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure a block of less than a minute: counters start again at their range, and one such start is seen."""
        energy, started = Energy(), time.perf_counter()
        before = [_read_int(zone / "energy_uj") for zone in self.zones]
        yield energy
        after = [_read_int(zone / "energy_uj") for zone in self.zones]
        energy.seconds = time.perf_counter() - started
        joules = 0.0
        for zone, start, end in zip(self.zones, before, after, strict=True):
            if start is None or end is None:
                return
            around = _read_int(zone / "max_energy_range_uj") or 0
            joules += (end - start if end >= start else end - start + around) / 1e6
        energy.joules = joules


@dataclass(frozen=True)
class Ina3221:
    """Power monitors of Jetson boards: voltage times current of each rail, read again and again."""

    channels: tuple[tuple[Path, Path], ...]
    """The files with millivolts and with milliamperes of each rail."""
    rails: tuple[str, ...]
    interval_s: float = field(default=INTERVAL_S)

    def watts(self) -> float | None:
        """Return the power of all rails together now."""
        total = 0.0
        for voltage, current in self.channels:
            millivolts, milliamperes = _read_int(voltage), _read_int(current)
            if millivolts is None or milliamperes is None:
                return None
            total += millivolts * milliamperes / 1e6
        return total

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure a block: power is integrated over time by the trapezoidal rule."""
        energy, done = Energy(), threading.Event()
        readings: list[tuple[float, float | None]] = []

        def read() -> None:
            readings.append((time.perf_counter(), self.watts()))

        def keep_reading() -> None:
            while not done.wait(self.interval_s):
                read()

        read()
        reader = threading.Thread(target=keep_reading, daemon=True)
        reader.start()
        try:
            yield energy
        finally:
            done.set()
            reader.join()
        read()
        energy.seconds = readings[-1][0] - readings[0][0]
        energy.joules = _integrate(readings)


def _integrate(readings: Sequence[tuple[float, float | None]]) -> float | None:
    joules = 0.0
    for (earlier, before), (later, after) in itertools.pairwise(readings):
        if before is None or after is None:
            return None
        joules += (before + after) / 2 * (later - earlier)
    return joules


def _find_ina3221(root: Path) -> Ina3221 | None:
    found: dict[str, tuple[Path, Path]] = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*"), key=_number):
        if _read(monitor / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = _read(monitor / f"in{channel}_label")
            files = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
            if label and label != "NC" and all(_read_int(file) is not None for file in files):
                found[label] = files
    # Where the whole module's rail is measured, the others are parts of it.
    if "VDD_IN" in found:
        found = {"VDD_IN": found["VDD_IN"]}
    return Ina3221(tuple(found.values()), tuple(found)) if found else None


def _find_rapl(root: Path) -> Rapl | None:
    found: dict[str, Path] = {}
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:*")):
        name = _read(zone / "name") or ""
        # Cores are part of their package, and memory is not.
        if (name.startswith("package") or name == "dram") and _read_int(zone / "energy_uj") is not None:
            found[name if name not in found else f"{name} ({zone.name})"] = zone
    return Rapl(tuple(found.values()), tuple(found)) if found else None


def _read(path: Path) -> str | None:
    """Return the text of a small file, or None where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(character for character in os.path.basename(path) if character.isdigit())  # noqa: PTH119
    return int(digits or 0), str(path)
