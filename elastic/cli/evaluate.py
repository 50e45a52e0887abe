"""`elastic eval`: quality and cost of subnets on held-out data."""

from __future__ import annotations

from typing import Annotated

import typer

from elastic.cli.options import (
    Capacity,
    Folder,
    InputShape,
    Json,
    SubnetOption,
    read_capacity,
    read_input_shape,
    read_subnet_option,
)
from elastic.cli.output import print_json, progress, reported
from elastic.cli.points import print_points, print_routed
from elastic.errors import ElasticError


@reported
def evaluate(
    folder: Folder,
    subnet: SubnetOption = None,
    split: Annotated[str, typer.Option(help="validation or test; choose nothing by test data.")] = "validation",
    input_shape: InputShape = None,
    routed: Annotated[bool, typer.Option("--routed", help="Let the model's routers decide what is computed.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="--routed: score from which on a sub-layer computes. Default: as trained.")
    ] = None,
    capacity: Capacity = None,
    as_json: Json = False,
) -> None:
    """Measure the granularities of a universal model, or one subnet."""
    if not routed and (threshold is not None or capacity is not None):
        raise ElasticError("--threshold and --capacity are for routers; add --routed.")
    if threshold is not None and capacity is not None:
        raise ElasticError("give either --threshold or --capacity, not both.")
    share = None if capacity is None else read_capacity(capacity)
    from elastic.pipeline import Universal
    from elastic.record import read_record
    from elastic.selection import Measured

    universal = Universal.open(folder, read_input_shape(input_shape, read_record(folder).input_shapes))
    subnets = {"": read_subnet_option(subnet)} if subnet else universal.granularities
    if routed:
        from elastic.pipeline import measure_routed, threshold_of

        measured = []
        with progress("Measuring") as on_progress:
            for name, choice in subnets.items():
                at = threshold if share is None else threshold_of(universal, choice, share)
                measured.append(measure_routed(universal, choice, split, name=name, threshold=at))
                on_progress(len(measured), len(subnets))
        if as_json:
            print_json([point.to_dict() for point in measured])
        else:
            print_routed(measured)
        return
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
