"""Budgets as people write them, and which subnets meet them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from decimal import Decimal

from elastic.cost.cost import Cost
from elastic.errors import BudgetError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1,
          "kb": 10**3, "mb": 10**6, "gb": 10**9}  # fmt: skip
_MAX_DIGITS = 24
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d{1,4})?|\.\d+)\s*([a-z]*|%)\s*", re.IGNORECASE)


def parse_quantity(text: str | int | float, of: int) -> int:
    """Read ``2G``, ``1.5e9``, ``64MiB`` or ``60%`` (of ``of``) as a whole number, rounded down.

    Raises:
        BudgetError: if the text is not a positive quantity.
    """
    match = _QUANTITY.fullmatch(str(text))
    unit = match[2].lower() if match else ""
    if match and (unit == "%" or unit in _UNITS) and (number := Decimal(match[1])).adjusted() < _MAX_DIGITS:
        # In decimals: as floats, 100% of 29 is 28.999999999999996, and 8.2M is 8199999.999999999.
        value = number * of / 100 if unit == "%" else number * _UNITS[unit]
        if value >= 1:
            return int(value)
    raise BudgetError(f"'{text}' is not a budget; write a positive number such as 2G, 500M, 1.5e9, 64MiB or 60%.")


_MEASURED_UNITS = {
    "latency": ("ms", {"us": 1e-3, "ms": 1.0, "s": 1e3}, "a latency table", "8ms, 500us"),
    "energy": ("mJ", {"uj": 1e-3, "mj": 1.0, "j": 1e3}, "a latency table with energies", "20mJ, 0.5J"),
}
"""Of each budget on what is measured: its unit, units that are read, where it comes from, and examples."""


def parse_measured(name: str, text: str, of: float) -> float:
    """Read ``8ms`` or ``20mJ``, or ``60%`` of ``of``, in milliseconds or millijoules.

    Raises:
        BudgetError: if the text is not a positive quantity with a unit.
    """
    match = _QUANTITY.fullmatch(str(text))
    unit = match[2].lower() if match else ""
    _, units, _, examples = _MEASURED_UNITS[name]
    if match and (unit == "%" or unit in units):
        value = float(match[1]) * (of / 100 if unit == "%" else units[unit])
        if math.isfinite(value) and value > 0:
            return value
    raise BudgetError(f"'{text}' is not a budget of {name}; write a positive number with its unit: {examples} or 60%.")


@dataclass(frozen=True)
class Budget:
    """Upper limits on the cost of a subnet; all that are given must hold.

    Each is a number, or text such as ``"2G"`` or ``"60%"`` (of the largest subnet). Latency and energy are predicted
    from a latency table, which the cost model must have (see `CostModel.with_table`), and are given with their unit.
    """

    flops: str | int | float | None = None
    macs: str | int | float | None = None
    params: str | int | float | None = None
    memory: str | int | float | None = None
    """Weights and activations together, in bytes."""
    latency: str | None = None
    """Of one inference on the table's device: ``"8ms"``."""
    energy: str | None = None
    """Of one inference on the table's device, its idle power included: ``"20mJ"``."""

    def limits(self, largest: Cost) -> Limits:
        """Return the limits as whole numbers; percentages are of ``largest``.

        Raises:
            BudgetError: if none is given, one cannot be read, or latency or energy has no table.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if not given:
            raise BudgetError("no budget is given; name at least one of flops, macs, params, memory, latency, energy.")
        limits: dict[str, float] = {}
        for name, value in given.items():
            if name in _MEASURED_UNITS:
                limits[name] = parse_measured(name, value, spent(largest, name))
            else:
                limits[name] = parse_quantity(value, int(spent(largest, name)))
        return Limits(limits)


@dataclass(frozen=True)
class Limits:
    """A budget in numbers, by what it limits; latency in milliseconds, energy in millijoules."""

    values: dict[str, float]

    def met_by(self, cost: Cost) -> bool:
        """Whether ``cost`` is within every limit."""
        return all(spent(cost, name) <= limit for name, limit in self.values.items())

    def check_reachable(self, smallest: Cost) -> None:
        """Check that the smallest subnet meets the budget.

        Raises:
            BudgetError: if it does not; names what the smallest subnet needs.
        """
        for name, limit in self.values.items():
            if spent(smallest, name) > limit:
                needs = spent(smallest, name)
                exact = "" if name in _MEASURED_UNITS else f" ({needs})"
                raise BudgetError(
                    f"no subnet has {name} of at most {format_spent(name, limit)}; the smallest has "
                    f"{format_spent(name, needs)}{exact}."
                )

    def closeness(self, cost: Cost) -> float:
        """How much of the tightest limit ``cost`` uses: 1 is all of it."""
        return max(spent(cost, name) / limit for name, limit in self.values.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} <= {format_spent(name, limit)}" for name, limit in self.values.items())


def spent(cost: Cost, name: str) -> float:
    """Return what a budget of this name limits.

    Raises:
        BudgetError: if it is predicted from a latency table, and there is none, or none with energies.
    """
    if name in _MEASURED_UNITS:
        value = cost.latency_ms if name == "latency" else cost.energy_mj
        if value is None:
            source = _MEASURED_UNITS[name][2]
            raise BudgetError(
                f"a budget of {name} needs {source}, which `elastic profile` measures on the device; give it with "
                "--table T.json."
            )
        return value
    return cost.memory_bytes if name == "memory" else int(getattr(cost, name))


def format_spent(name: str, value: float) -> str:
    """Return a cost as people read it, with its unit where it has one."""
    return f"{value:.3g} {_MEASURED_UNITS[name][0]}" if name in _MEASURED_UNITS else format_quantity(value)


def format_quantity(value: float) -> str:
    """Return a number as people read it: ``1234567`` is ``1.23M``."""
    value = float(f"{value:.3g}")  # Before the unit is chosen: 999,999 is 1M, not 1000k.
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
