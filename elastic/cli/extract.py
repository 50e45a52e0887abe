"""`elastic extract`: search, cut, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elastic.cli.options import (
    Candidates,
    Capacity,
    Correct,
    Flops,
    Folder,
    InputShape,
    Json,
    Macs,
    Memory,
    Output,
    Params,
    SearchMethod,
    SubnetOption,
    Uniform,
    Within,
    read_budget,
    read_capacity,
    read_input_shape,
    read_method,
    read_search_method,
    read_space_option,
    read_subnet_option,
)
from elastic.cli.output import note, print_json, progress, reported
from elastic.cli.points import print_points
from elastic.errors import BudgetError

if TYPE_CHECKING:
    from elastic.cost import Budget


@reported
def extract(
    folder: Folder,
    output: Output,
    flops: Flops = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    subnet: SubnetOption = None,
    uniform: Uniform = False,
    within: Within = None,
    method: SearchMethod = None,
    candidates: Candidates = 48,
    correct: Correct = None,
    frozen_routers: Annotated[
        bool, typer.Option("--frozen-routers", help="Cut away what the model's routers use least; see --capacity.")
    ] = False,
    capacity: Capacity = None,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Cut the best subnet within a budget (or a given one) into an ordinary checkpoint, and verify it."""
    budget = _read_limits(subnet, frozen_routers, capacity, (flops, macs, params, memory))
    share = None if capacity is None else read_capacity(capacity)
    chosen = read_subnet_option(subnet) if subnet else None
    space = read_space_option(within) if within else None
    from elastic.checkpoint import read_record
    from elastic.folder import check_output
    from elastic.ordering import CORRECTIONS
    from elastic.pipeline import Universal, extract_checkpoint, frozen_subnet, is_stock
    from elastic.selection import Measured, search

    check_output(output)
    correction = read_method("--correct", correct, CORRECTIONS)
    universal = Universal.open(folder, read_input_shape(input_shape, read_record(folder).input_shapes))
    if frozen_routers:
        chosen = frozen_subnet(universal, share)
    if chosen:
        kind = "uniform" if chosen.is_uniform else "mix"
        best = Measured(chosen, universal.cost_model.cost(chosen), universal.measure(chosen), kind)
    elif budget:
        with progress("Measuring candidates") as on_progress:
            best = search(
                universal.model,
                budget,
                universal.measure,
                input_shapes=universal.input_shapes,
                method=read_search_method(method, uniform),
                accept=lambda subnet: is_stock(universal, subnet),
                num_candidates=candidates,
                within=space,
                on_progress=on_progress,
            ).best
    record = extract_checkpoint(universal, best, output, correction=correction)
    stock = is_stock(universal, best.subnet)
    if as_json:
        result = record.model_dump(mode="json", exclude={"recipe", "files"}, exclude_none=True)
        print_json({"output": str(output), "stock": stock, **result})
        return
    print_points([best], title=f"Extracted to {output}")
    if record.test_quality:
        test = record.test_quality
        note(f"On test data, used only for this: {test['metric']} {test['value']:.4g} ({test['num_examples']}).")
    if record.correction:
        after = record.correction["quality"]
        note(f"Corrected over {record.correction['examples']} examples: {after['metric']} {after['value']:.4g}.")
    if record.verification:
        note(f"Verified against the universal model: largest difference {record.verification['max_abs_diff']:.1e}.")
    if stock:
        note(f"Any transformers loads it: AutoModel*.from_pretrained('{output}').")
    else:
        note(f"Its layers differ: load it with elastic.load('{output}'), or extract with --uniform for stock loading.")
    note(f"Next: elastic export {output} --to onnx -o bundle")


def _read_limits(
    subnet: str | None, frozen_routers: bool, capacity: str | None, limits: tuple[str | None, ...]
) -> Budget | None:
    """Return the budget, or None where a subnet is given or routers say what leaves."""
    if subnet and any(limits):
        raise BudgetError("give either --subnet or a budget, not both.")
    if frozen_routers and (subnet or any(limits)):
        raise BudgetError("--frozen-routers takes --capacity alone, not --subnet or a budget.")
    if capacity and not frozen_routers:
        raise BudgetError("--capacity is for routers; add --frozen-routers.")
    return None if subnet or frozen_routers else read_budget(*limits)
