"""`elastic search`: the best subnets within a budget."""

from __future__ import annotations

from elastic.cli.options import (
    Candidates,
    Context,
    Energy,
    Flops,
    Folder,
    InputShape,
    Json,
    Latency,
    Macs,
    Memory,
    MultipleOf,
    Params,
    PhaseOption,
    SearchMethod,
    Table,
    Uniform,
    Within,
    read_budget,
    read_input_shape,
    read_phase,
    read_search_method,
    read_space_option,
    read_table,
)
from elastic.cli.output import note, print_json, progress, reported
from elastic.cli.points import note_table, print_points


@reported
def search(
    folder: Folder,
    flops: Flops = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    latency: Latency = None,
    energy: Energy = None,
    table: Table = None,
    uniform: Uniform = False,
    within: Within = None,
    multiple_of: MultipleOf = 1,
    method: SearchMethod = None,
    candidates: Candidates = 48,
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Find the best subnet within all budgets given, and runners-up, measured on validation data."""
    budget = read_budget(flops, macs, params, memory, latency, energy, table)
    device = read_table(table)
    space = read_space_option(within) if within else None
    from elastic.checkpoint import read_record
    from elastic.pipeline import Universal, is_stock
    from elastic.selection import search as run

    recorded = read_record(folder).input_shapes
    shapes = read_input_shape(input_shape, recorded)
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, recorded), device)
    with progress("Measuring") as on_progress:
        result = run(
            universal.model,
            budget,
            universal.measure,
            cost_model=universal.cost_model,
            method=read_search_method(method, uniform),
            accept=lambda subnet: is_stock(universal, subnet),
            num_candidates=candidates,
            within=space,
            multiple_of=multiple_of,
            on_progress=on_progress,
        )
    if as_json:
        print_json({
            "best": result.best.to_dict(),
            "measured": [point.to_dict() for point in result.measured],
            "num_evaluations": result.num_evaluations,
            "table": None if (costs := universal.cost_model.latency) is None else costs.to_dict(),
            "predictor": None if (p := result.predictor) is None else {
                "error": p.error, "rank_correlation": p.rank_correlation, "bound": result.predicted_bound,
            },
        })  # fmt: skip
    else:
        print_points(result.measured[:5], title=f"Best of {len(result.measured)} subnets with {result.limits}")
        note_table(universal.cost_model)
        if result.predictor is not None:
            note(
                f"{result.num_evaluations} subnets measured. The predictor's error on subnets it had not seen: "
                f"{result.predictor.error:.2g}; its rank correlation: {result.predictor.rank_correlation:.2f}."
            )
