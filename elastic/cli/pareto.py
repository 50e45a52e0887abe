"""`elastic pareto`: quality against cost, as a page, a picture and a table."""

from __future__ import annotations

from typing import Annotated

import typer

from elastic.cli.options import (
    Context,
    Energy,
    Folder,
    InputShape,
    Json,
    Latency,
    Output,
    PhaseOption,
    Table,
    check_table,
    read_input_shape,
    read_method,
    read_phase,
    read_table,
)
from elastic.cli.output import note, print_json, progress, reported
from elastic.cli.points import note_table, print_points
from elastic.errors import BudgetError


@reported
def pareto(
    folder: Folder,
    output: Output,
    candidates: Annotated[
        int, typer.Option(min=1, help="Subnets measured beside the granularities and what the predictor needs.")
    ] = 60,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="predictor (default: also what search would find at many budgets), or heuristic (uniform subnets and "
            "mixes alone).",
        ),
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            help="flops (default; with --table latency_ms), macs, params, memory_bytes, latency_ms or energy_mj; "
            "repeat it for a front over several."
        ),
    ] = None,
    latency: Latency = None,
    energy: Energy = None,
    table: Table = None,
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Measure subnets over the whole range of costs; write pareto.csv, pareto.png and index.html."""
    from elastic.cost import Budget
    from elastic.folder import check_output, new_folder
    from elastic.pipeline import Universal
    from elastic.record import read_record
    from elastic.selection.landscape import LANDSCAPE_METHODS, NO_LIMITS, LandscapeMethod, measure_landscape
    from elastic.selection.pareto import COSTS, check_cost, pareto_front
    from elastic.selection.report import write_report

    check_output(output)
    check_table(latency, energy, table)
    chosen: LandscapeMethod = read_method("--method", method, LANDSCAPE_METHODS) or "predictor"
    device = read_table(table)
    recorded = read_record(folder).input_shapes
    shapes = read_input_shape(input_shape, recorded)
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, recorded), device)
    space, cost_model = universal.elastic.resolved, universal.cost_model
    costs = cost or ["flops" if cost_model.latency is None else "latency_ms"]
    if cost_model.latency is not None:
        cost_model.latency.check_covers(space)
    for name in costs:
        check_cost(name, cost_model.cost(space.largest))
    limits = NO_LIMITS
    if latency or energy:
        limits = Budget(latency=latency, energy=energy).limits(cost_model.cost(space.largest))
        limits.check_reachable(cost_model.cost(space.smallest))
    with progress("Measuring") as on_progress:
        points = measure_landscape(
            space, cost_model, universal.measure, universal.granularities, costs=costs, limits=limits,
            method=chosen, num_candidates=candidates, on_progress=on_progress,
        )  # fmt: skip
    if not points:
        raise BudgetError(f"none of the subnets looked at is within {limits}; raise --candidates or the limit.")
    with new_folder(output) as target:
        write_report(points, target, model_name=universal.recipe.name, model_dir=str(folder), costs=costs)
    front = pareto_front(points, costs)
    if as_json:
        print_json({"output": str(output), "front": [p.to_dict() for p in front], "measured": len(points)})
        return
    print_points(
        front, title=f"Pareto front of {len(points)} measured subnets", budgets=[COSTS[name] for name in costs]
    )
    note_table(cost_model)
    if device is not None and device.precision != "fp32":
        note(f"Qualities are in float32, latencies in {device.precision}; `elastic search` measures in the precision.")
    note(f"Open {output / 'index.html'} in a browser; pareto.png and pareto.csv lie beside it.")
