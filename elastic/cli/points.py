"""The table of measured subnets that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elastic.cli.output import print_table

if TYPE_CHECKING:
    from elastic.pipeline import MeasuredRouters
    from elastic.selection import Measured


def print_points(points: Sequence[Measured], *, title: str = "") -> None:
    """Print measured subnets, with on what they were measured in the column's name."""
    from elastic.cost import format_quantity

    quality = points[0].quality
    measured_on = f"{quality.metric} ({quality.split}, {quality.num_examples})"
    print_table(
        [
            {
                "kind": point.name or point.kind,
                "subnet": point.subnet.describe(),
                "FLOPs": format_quantity(point.cost.flops),
                "parameters": format_quantity(point.cost.params),
                measured_on: f"{point.quality.value:.4g}",
            }
            for point in points
        ],
        title=title,
    )


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
