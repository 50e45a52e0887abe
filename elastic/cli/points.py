"""The table of measured subnets that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from elastic.cli.output import note, print_table

if TYPE_CHECKING:
    from elastic.cost import CostModel
    from elastic.pipeline import MeasuredRouters
    from elastic.selection import Measured


def print_points(points: Sequence[Measured], *, title: str = "", budgets: Iterable[str] = ()) -> None:
    """Print measured subnets, with on what they were measured in the column's name.

    Args:
        points: measured by one metric.
        title: of the table.
        budgets: names of those that were asked for; macs and memory have a column only then.
    """
    from elastic.cost import format_quantity, spent

    quality = points[0].quality
    measured_on = f"{quality.metric} ({quality.split}, {quality.num_examples})"
    print_table(
        [
            {
                "kind": point.name or point.kind,
                "subnet": point.subnet.describe(),
                "FLOPs": format_quantity(point.cost.flops),
                "parameters": format_quantity(point.cost.params),
                **{name: format_quantity(spent(point.cost, name)) for name in budgets if name in ("macs", "memory")},
                **_predicted(point),
                measured_on: f"{point.quality.value:.4g}",
                **expected_column(point),
            }
            for point in points
        ],
        title=title,
    )


def expected_column(point: Measured) -> dict[str, str]:
    """Return the column of what is expected on other examples, where that is known."""
    return {} if point.expected is None else {"expected": f"{point.expected:.4g}"}


def _predicted(point: Measured) -> dict[str, str]:
    from elastic.cost import format_spent

    found = {"latency": point.cost.latency_ms, "energy": point.cost.energy_mj}
    return {f"predicted {name}": format_spent(name, value) for name, value in found.items() if value is not None}


def note_table(cost_model: CostModel) -> None:
    """Say for which device latencies are predicted, and how far off predictions are."""
    if cost_model.latency is not None:
        note(cost_model.latency.describe())


def print_routed(points: Sequence[MeasuredRouters]) -> None:
    """Print subnets as their routers ran them: what was computed of each sub-layer, and the mean cost."""
    from elastic.cost import format_quantity

    quality = points[0].quality
    print_table(
        [
            {
                "kind": point.name or "subnet",
                "subnet": point.subnet.describe(),
                "threshold": f"{point.threshold:.3g}",
                "capacity": f"{point.capacity:.1%}",
                "of each gate": " ".join(f"{share:.2f}" for share in point.usage.values()),
                "expected FLOPs": format_quantity(point.expected_flops),
                "all on": format_quantity(point.cost.flops),
                f"{quality.metric} ({quality.split}, {quality.num_examples})": f"{point.quality.value:.4g}",
            }
            for point in points
        ]
    )
