"""Latency tables: how long subnets took on one device, as `elastic profile` wrote it there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from elastic.cost.cost import InputShapes
from elastic.errors import BudgetError, SpaceError
from elastic.subnet import Subnet

FORMAT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class Device(_Part):
    """Where a table was measured."""

    name: str
    machine: str = ""
    system: str = ""
    cpus: int = 1
    runtime: str = ""


class Measurement(_Part):
    """One subnet at one set of input sizes."""

    name: str
    subnet: Subnet | None
    sizes: dict[str, int]
    inputs: dict[str, tuple[int, ...]]
    median_ms: float = Field(gt=0)
    p10_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    energy_mj: float | None = Field(default=None, gt=0)

    @field_validator("subnet", mode="before")
    @classmethod
    def _subnet(cls, data: Any) -> Subnet | None:
        return data if data is None or isinstance(data, Subnet) else Subnet.from_dict(data)

    @property
    def at(self) -> str:
        """The input sizes in words."""
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items())


class LatencyTable(_Part):
    """What one device needs for some subnets of one model. Read it with `LatencyTable.read`."""

    format_version: int
    device: Device
    model_type: str
    precision: str = Field(min_length=1)
    threads: int
    rounds: int
    measured: tuple[Measurement, ...] = Field(min_length=1)
    path: str = ""
    """The file that was read."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read a table.

        Raises:
            BudgetError: if the file is no latency table, or one of a newer format.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BudgetError(
                f"there is no latency table {path}; `elastic profile` writes one on the device."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise BudgetError(f"{path} is not a latency table: {error}.") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BudgetError(f"{path} has format version {version}, and this version reads up to {FORMAT_VERSION}.")
        try:
            return cls.model_validate({**data, "path": str(path)} if isinstance(data, dict) else data)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("precision",):
                raise BudgetError(
                    f"the latency table {path} does not say its precision; profile the bundles again with `elastic "
                    "profile`, or write the precision that they had into it."
                ) from None
            where = ".".join(map(str, first["loc"])) or "the file"
            raise BudgetError(f"{path} is not a latency table: {where}: {first['msg']}.") from None
        except SpaceError as error:
            raise BudgetError(f"{path} is not a latency table: {error}") from None

    @property
    def title(self) -> str:
        """The device and the settings in words."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.device.name} ({threads}, {self.precision})"

    def at(self, input_shapes: InputShapes, past: int = 0) -> list[Measurement]:
        """Return the measured subnets at the sizes for which costs are computed.

        Raises:
            BudgetError: if there are none, because other sizes were measured (names the nearest).
        """
        found = [
            one
            for one in self.measured
            if one.sizes.get("past", 0) == past and all(one.inputs.get(n) == tuple(s) for n, s in input_shapes.items())
        ]
        if not found:
            asked = ", ".join(f"{name} {_by(shape)}" for name, shape in input_shapes.items())
            asked += f" after {past} cached tokens" if past else ""
            nearest = min(self.measured, key=lambda one: _distance(one, input_shapes, past))
            raise BudgetError(
                f"the latency table {self.path} was not measured at {asked}, and latencies are not extrapolated to "
                f"other input sizes; the nearest are {nearest.at}: choose these, or profile at yours."
            )
        cut = [one for one in found if one.subnet is not None]
        if not cut:
            raise BudgetError(
                f"no bundle in the latency table {self.path} says which subnet it is; profile bundles of extracted "
                "models."
            )
        return cut


def check_together(tables: Sequence[LatencyTable]) -> None:
    """Check that tables are of one model on one device, each in a precision of its own.

    Raises:
        BudgetError: naming the first two that are not.
    """
    for index, table in enumerate(tables):
        for other in tables[:index]:
            if table.precision == other.precision:
                raise BudgetError(
                    f"the latency tables {other.path} and {table.path} are both of {table.precision}; give one for "
                    "each precision."
                )
            for what, one, two in (
                ("model type", other.model_type, table.model_type),
                ("device", other.device.name, table.device.name),
                ("number of threads", other.threads, table.threads),
            ):
                if one != two:
                    raise BudgetError(
                        f"the latency tables {other.path} and {table.path} differ in the {what} ({one} and {two}), and "
                        "a budget is for one; profile both precisions alike."
                    )


def _distance(one: Measurement, input_shapes: InputShapes, past: int) -> float:
    """How far apart sizes are: the sum of the logarithms of their ratios, infinite if they are not comparable."""
    pairs: list[tuple[Sequence[int], Sequence[int]]] = [((past + 1,), (one.sizes.get("past", 0) + 1,))]
    pairs += [(shape, one.inputs.get(name, ())) for name, shape in input_shapes.items()]
    if any(len(asked) != len(there) for asked, there in pairs):
        return math.inf
    return sum(abs(math.log(a / b)) for asked, there in pairs for a, b in zip(asked, there, strict=True) if a and b)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def subnets_of(rows: Sequence[Measurement]) -> Mapping[Subnet, Measurement]:
    """Return the rows by their subnets; of a subnet that was measured twice, the last."""
    return {row.subnet: row for row in rows if row.subnet is not None}
