"""`elastic search`: the best subnets within a budget."""

from __future__ import annotations

from elastic.cli.joint import chooses_precision, print_joint, search_precisions, search_settings
from elastic.cli.options import (
    Candidates,
    Context,
    Energy,
    Flops,
    Folder,
    InputShape,
    Json,
    Latency,
    Lowered,
    Macs,
    Memory,
    MultipleOf,
    Params,
    PhaseOption,
    SearchMethod,
    Tables,
    Uniform,
    Within,
    read_budget,
    read_input_shape,
    read_phase,
    read_space_option,
    read_tables,
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
    table: Tables = None,
    uniform: Uniform = False,
    within: Within = None,
    multiple_of: MultipleOf = "1",
    method: SearchMethod = None,
    candidates: Candidates = 48,
    lowered: Lowered = 8,
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Find the best subnet within all budgets given, and runners-up, measured on validation data.

    With tables of several precisions, the best subnet and precision together.
    """
    budget = read_budget(flops, macs, params, memory, latency, energy, table)
    tables = read_tables(table, memory)
    space = read_space_option(within) if within else None
    from elastic.pipeline import Universal
    from elastic.record import read_record
    from elastic.selection import search as run

    recorded = read_record(folder).input_shapes
    shapes = read_input_shape(input_shape, recorded)
    by_precision = chooses_precision(tables)
    device = None if by_precision or not tables else tables[0]
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, recorded), device)
    settings = search_settings(
        universal, method=method, uniform=uniform, candidates=candidates, within=space, multiple_of=multiple_of
    )
    if by_precision:
        joint = search_precisions(universal, tables, budget, lowered, settings)
        print_joint(joint, universal, tables, as_json)
        return
    with progress("Measuring") as on_progress:
        result = run(
            universal.model,
            budget,
            universal.measure,
            cost_model=universal.cost_model,
            on_progress=on_progress,
            **settings,
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
            "noise": None if (s := result.shrinkage) is None else {
                "deviation": s.noise, "weight_of_measured": s.weight,
            },
        })  # fmt: skip
    else:
        title = f"Best of {len(result.measured)} subnets with {result.limits}"
        print_points(result.measured[:5], title=title, budgets=result.limits.values)
        note_table(universal.cost_model)
        if result.predictor is not None:
            note(
                f"{result.num_evaluations} subnets measured. The predictor's error on subnets it had not seen: "
                f"{result.predictor.error:.2g}; its rank correlation: {result.predictor.rank_correlation:.2f}."
            )
        if result.shrinkage is not None:
            note(
                f"The choice of examples adds {result.shrinkage.noise:.2g} of noise; 'expected', by which the best is "
                f"chosen, is {result.shrinkage.weight:.0%} what was measured and the rest what is predicted."
            )
