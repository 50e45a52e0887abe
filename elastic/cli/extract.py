"""`elastic extract`: search, cut, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic.cli.joint import (
    as_arguments,
    chooses_precision,
    export_options,
    note_joint,
    search_precisions,
    search_settings,
)
from elastic.cli.options import (
    Candidates,
    Capacity,
    Context,
    Correct,
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
    Output,
    Params,
    PhaseOption,
    SearchMethod,
    SubnetOption,
    Tables,
    Uniform,
    Within,
    read_budget,
    read_capacity,
    read_input_shape,
    read_method,
    read_phase,
    read_space_option,
    read_subnet_option,
    read_tables,
)
from elastic.cli.output import note, print_json, print_table, progress, reported
from elastic.cli.points import note_table, print_points
from elastic.cli.push import Private, PushToHub, check_push, push
from elastic.errors import BudgetError, ElasticError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from elastic.cost import Budget
    from elastic.pipeline import Universal
    from elastic.record import CheckpointRecord
    from elastic.selection import Measured
    from elastic.space import Subnet

Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Cut --subnet out of the weight files, slice by slice, without loading the model: for models of any size. "
        "Quality is not measured; an interrupted run continues. So it always is for a model that names no data.",
    ),
]
ShardSize = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="With --stream: largest weight file, such as 500MB.")
]


@reported
def extract(
    folder: Folder,
    output: Output,
    flops: Flops = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    latency: Latency = None,
    energy: Energy = None,
    table: Tables = None,
    subnet: SubnetOption = None,
    uniform: Uniform = False,
    within: Within = None,
    multiple_of: MultipleOf = "1",
    method: SearchMethod = None,
    candidates: Candidates = 48,
    lowered: Lowered = 8,
    correct: Correct = None,
    stream: Stream = False,
    max_shard_size: ShardSize = "5GB",
    frozen_routers: Annotated[
        bool, typer.Option("--frozen-routers", help="Cut away what the model's routers use least; see --capacity.")
    ] = False,
    capacity: Capacity = None,
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Cut the best subnet within a budget (or a given one) into an ordinary checkpoint, and verify it."""
    check_push(push_to_hub, private)
    budget = _read_limits(subnet, frozen_routers, capacity, (flops, macs, params, memory), (latency, energy, table))
    tables = read_tables(table, memory)
    share = None if capacity is None else read_capacity(capacity)
    chosen = read_subnet_option(subnet) if subnet else None
    space = read_space_option(within) if within else None
    from elastic.folder import check_output
    from elastic.ordering import CORRECTIONS
    from elastic.pipeline import Universal, extract_checkpoint, is_stock
    from elastic.record import read_record
    from elastic.selection import Measured

    check_output(output)
    if stream and (chosen is None or correct):
        raise ElasticError(
            "--stream measures nothing, so it can neither search nor correct; name the subnet with --subnet, and leave "
            "--correct out."
        )
    if chosen and not correct and (stream or read_record(folder).recipe is None):
        _stream(folder, chosen, output, input_shape, max_shard_size, as_json)
        push(output, push_to_hub, private)
        return
    correction = read_method("--correct", correct, CORRECTIONS)
    recorded = read_record(folder).input_shapes
    shapes = read_input_shape(input_shape, recorded)
    by_precision = budget is not None and chooses_precision(tables)
    device = None if by_precision or not tables else tables[0]
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, recorded), device)
    joint = None
    if frozen_routers:
        from elastic.pipeline import frozen_subnet

        chosen = frozen_subnet(universal, share)
    if chosen:
        kind = "uniform" if chosen.is_uniform else "mix"
        best = Measured(chosen, universal.cost_model.cost(chosen), universal.measure(chosen), kind)
    elif budget:
        settings = search_settings(
            universal, method=method, uniform=uniform, candidates=candidates, within=space, multiple_of=multiple_of
        )
        if by_precision:
            joint = search_precisions(universal, tables, budget, lowered, settings)
        best = joint.best if joint else _search(universal, budget, settings)
    export_as = export_options(tables, best.precision)
    record = extract_checkpoint(universal, best, output, correction=correction, export_as=export_as)
    stock = is_stock(universal, best.subnet)
    if as_json:
        result = record.model_dump(mode="json", exclude={"recipe", "files"}, exclude_none=True)
        print_json({"output": str(output), "stock": stock, **result})
        push(output, push_to_hub, private)
        return
    asked = [name for name, limit in vars(budget).items() if limit is not None] if budget else []
    print_points([best], title=f"Extracted to {output}", budgets=asked)
    note_table(universal.cost_model)
    if joint:
        note_joint(joint, universal, tables)
    _note_checks(record)
    _say_how_to_load(output, stock, export_as)
    push(output, push_to_hub, private)


def _search(universal: Universal, budget: Budget, settings: Mapping[str, Any]) -> Measured:
    from elastic.selection import search

    with progress("Measuring candidates") as on_progress:
        return search(
            universal.model,
            budget,
            universal.measure,
            cost_model=universal.cost_model,
            on_progress=on_progress,
            **settings,
        ).best


def _note_checks(record: CheckpointRecord) -> None:
    if record.test_quality:
        test = record.test_quality
        note(f"On test data, used only for this: {test['metric']} {test['value']:.4g} ({test['num_examples']}).")
    if record.correction:
        after = record.correction["quality"]
        note(f"Corrected over {record.correction['examples']} examples: {after['metric']} {after['value']:.4g}.")
    if record.verification:
        note(f"Verified against the universal model: largest difference {record.verification['max_abs_diff']:.1e}.")


def _stream(
    folder: Path, subnet: Subnet, output: Path, input_shape: str | None, max_shard_size: str, as_json: bool
) -> None:
    from elastic.checkpoint import read_config
    from elastic.extraction import is_portable
    from elastic.families import get_family
    from elastic.record import read_record
    from elastic.streaming import SUFFIX, stream_extraction

    universal = read_record(folder)
    shapes = read_input_shape(input_shape, universal.input_shapes)
    try:
        with progress("Cutting and verifying", in_bytes=True) as on_progress:
            record = stream_extraction(
                folder, subnet, output, input_shapes=shapes, max_shard_size=max_shard_size, on_progress=on_progress
            )
    except KeyboardInterrupt:
        if output.with_name(output.name + SUFFIX).exists():
            note(f"What is finished stays in {output.name + SUFFIX}; the same command continues.")
        raise
    config = read_config(folder, universal)
    stock = is_portable(get_family(config), config, subnet)
    if as_json:
        result = record.model_dump(mode="json", exclude={"recipe", "files"}, exclude_none=True)
        print_json({"output": str(output), "stock": stock, **result})
        return
    _print_streamed(record, subnet, output)
    _say_how_to_load(output, stock)


def _print_streamed(record: CheckpointRecord, subnet: Subnet, output: Path) -> None:
    from elastic.cost import format_quantity

    cost = record.cost or {}
    print_table(
        [
            {
                "subnet": subnet.describe(),
                "FLOPs": format_quantity(cost["flops"]),
                "parameters": format_quantity(cost["params"]),
                "weights (bytes)": format_quantity(cost["weight_bytes"]),
                "files": str(len(record.files)),
            }
        ],
        title=f"Extracted to {output}",
    )
    if record.verification:
        note(
            "Every layer was verified against the universal model: largest difference "
            f"{record.verification['max_abs_diff']:.1e}. Quality was not measured."
        )


def _say_how_to_load(output: Path, stock: bool, export_as: Mapping[str, str] | None = None) -> None:
    if stock:
        note(f"Any transformers loads it: AutoModel*.from_pretrained('{output}').")
    else:
        note(
            f"Its layers differ: AutoModel*.from_pretrained('{output}', trust_remote_code=True) loads it, or "
            f"elastic.load('{output}'); --uniform gives one for stock loading."
        )
    how = f"{as_arguments(export_as)} --recipe {output}" if export_as else "--to onnx"
    note(f"Next: elastic export {output} {how} -o bundle")


def _read_limits(
    subnet: str | None,
    frozen_routers: bool,
    capacity: str | None,
    limits: tuple[str | None, str | None, str | None, str | None],
    on_device: tuple[str | None, str | None, list[Path] | None],
) -> Budget | None:
    """Return the budget, or None where a subnet is given or routers say what leaves."""
    if subnet and any((*limits, *on_device[:2])):
        raise BudgetError("give either --subnet or a budget, not both.")
    if subnet and len(on_device[2] or ()) > 1:
        raise BudgetError("--subnet is one subnet, so one --table says its latency; leave the others out.")
    if frozen_routers and (subnet or any((*limits, *on_device[:2]))):
        raise BudgetError("--frozen-routers takes --capacity alone, not --subnet or a budget.")
    if capacity and not frozen_routers:
        raise BudgetError("--capacity is for routers; add --frozen-routers.")
    return None if subnet or frozen_routers else read_budget(*limits, *on_device)
