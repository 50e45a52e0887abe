"""`elastic eval`: quality and cost of subnets on held-out data."""

from __future__ import annotations

from typing import Annotated

import typer

from elastic.cli.options import Folder, InputShape, Json, SubnetOption, read_input_shape, read_subnet_option
from elastic.cli.output import print_json, progress, reported
from elastic.cli.points import print_points


@reported
def evaluate(
    folder: Folder,
    subnet: SubnetOption = None,
    split: Annotated[str, typer.Option(help="validation or test; choose nothing by test data.")] = "validation",
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Measure the granularities of a universal model, or one subnet."""
    from elastic.checkpoint import read_record
    from elastic.pipeline import Universal
    from elastic.selection import Measured

    universal = Universal.open(folder, read_input_shape(input_shape, read_record(folder).input_shapes))
    subnets = {"": read_subnet_option(subnet)} if subnet else universal.granularities
    points = []
    with progress("Measuring") as on_progress:
        for name, choice in subnets.items():
            cost = universal.cost_model.cost(choice)
            kind = "granularity" if name else "uniform" if choice.is_uniform else "mix"
            points.append(Measured(choice, cost, universal.measure(choice, split), kind, name))
            on_progress(len(points), len(subnets))
    if as_json:
        print_json([point.to_dict() for point in points])
    else:
        print_points(points)
