"""`elastic extract`: search, cut, verify."""

from __future__ import annotations

from elastic.cli.options import (
    Candidates,
    Context,
    Correct,
    Flops,
    Folder,
    InputShape,
    Json,
    Macs,
    Memory,
    Output,
    Params,
    PhaseOption,
    SearchMethod,
    SubnetOption,
    Uniform,
    Within,
    read_budget,
    read_input_shape,
    read_method,
    read_phase,
    read_search_method,
    read_space_option,
    read_subnet_option,
)
from elastic.cli.output import note, print_json, progress, reported
from elastic.cli.points import print_points
from elastic.cli.push import Private, PushToHub, check_push, push
from elastic.errors import BudgetError


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
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Cut the best subnet within a budget (or a given one) into an ordinary checkpoint, and verify it."""
    check_push(push_to_hub, private)
    if subnet and (flops or macs or params or memory):
        raise BudgetError("give either --subnet or a budget, not both.")
    budget = None if subnet else read_budget(flops, macs, params, memory)
    chosen = read_subnet_option(subnet) if subnet else None
    space = read_space_option(within) if within else None
    from elastic.checkpoint import read_record
    from elastic.folder import check_output
    from elastic.ordering import CORRECTIONS
    from elastic.pipeline import Universal, extract_checkpoint, is_stock
    from elastic.selection import Measured, search

    check_output(output)
    correction = read_method("--correct", correct, CORRECTIONS)
    recorded = read_record(folder).input_shapes
    shapes = read_input_shape(input_shape, recorded)
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, recorded))
    if chosen:
        kind = "uniform" if chosen.is_uniform else "mix"
        best = Measured(chosen, universal.cost_model.cost(chosen), universal.measure(chosen), kind)
    elif budget:
        with progress("Measuring candidates") as on_progress:
            best = search(
                universal.model,
                budget,
                universal.measure,
                cost_model=universal.cost_model,
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
        push(output, push_to_hub, private)
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
        note(
            f"Its layers differ: AutoModel*.from_pretrained('{output}', trust_remote_code=True) loads it, or "
            f"elastic.load('{output}'); --uniform gives one for stock loading."
        )
    note(f"Next: elastic export {output} --to onnx -o bundle")
    push(output, push_to_hub, private)
