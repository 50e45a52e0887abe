"""`elastic info`: what a universal or extracted model is."""

from __future__ import annotations

from typing import Any

from elastic.cli.options import Context, Folder, InputShape, Json, PhaseOption, read_input_shape, read_phase
from elastic.cli.output import note, print_json, print_table, reported


@reported
def info(
    folder: Folder,
    input_shape: InputShape = None,
    phase: PhaseOption = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Show axes, number of subnets and the range of costs of a universal model."""
    from elastic.record import read_record

    record = read_record(folder)
    if record.kind == "extracted":
        _extracted(record.model_dump(mode="json", exclude={"recipe", "files"}, exclude_none=True), as_json)
        return
    from elastic.cost import format_quantity
    from elastic.extraction import choices_stock_refuses
    from elastic.pipeline import Universal

    shapes = read_input_shape(input_shape, record.input_shapes)
    universal = Universal.open(folder, shapes, read_phase(phase, context, input_shape, record.input_shapes))
    space = universal.elastic.resolved
    subnets = {"smallest": space.smallest, **universal.granularities, "largest": space.largest}
    costs = {name: universal.cost_model.cost(subnet) for name, subnet in subnets.items()}
    refused = choices_stock_refuses(universal.elastic.family, universal.model.config, space)
    if as_json:
        print_json(
            {
                "kind": record.kind,
                "family": record.family,
                "axes": {axis: list(getattr(space, axis)) for axis in record.space},
                "num_subnets": space.num_subnets,
                "subnets": {n: {"subnet": s.to_dict(), "cost": costs[n].to_dict()} for n, s in subnets.items()},
                "stock_refuses": refused,
                "ordering": record.ordering,
                "routers": record.routers,
                "drop_order": record.drop_order,
                "training": record.training,
            }
        )
        return
    axes = "; ".join(f"{axis} {', '.join(map(str, getattr(space, axis)))}" for axis in record.space)
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in universal.input_shapes.items())
    title = f"Universal {record.family} model: {space.num_subnets:,} subnets ({axes})"
    print_table(
        [
            {
                "subnet": name,
                "is": subnet.describe(),
                "FLOPs": format_quantity(costs[name].flops),
                "parameters": format_quantity(costs[name].params),
                "memory (bytes)": format_quantity(costs[name].memory_bytes),
            }
            for name, subnet in subnets.items()
        ],
        title=f"{title}, costs for {universal.phase or inputs}",
    )
    if record.ordering:
        calibration = record.ordering.get("calibration") or {}
        over = f" over {calibration['examples']} examples" if calibration else ""
        note(f"Converted from {record.ordering['source']}; units ordered by {record.ordering['units']}{over}.")
    if record.routers:
        layers = ", ".join(map(str, record.routers["layers"]))
        note(f"Routers: {record.routers['what']} of layers {layers}; see elastic eval {folder} --routed.")
    for axis, choices in refused.items():
        listed = ", ".join(map(str, choices))
        note(f"Stock configurations cannot say {axis} {listed}: elastic.load reads those, --uniform leaves them out.")


def _extracted(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    from elastic.space import Subnet

    rows = [{"": "subnet", " ": Subnet.from_dict(record["subnet"]).describe()}]
    rows += [{"": name, " ": str(record["cost"][name])} for name in ("flops", "params", "memory_bytes")]
    for quality in (record.get("quality"), record.get("test_quality")):
        if quality:
            about = f"{quality['metric']} ({quality['split']}, {quality['num_examples']})"
            rows.append({"": about, " ": f"{quality['value']:.4g}"})
    rows.append({"": "largest difference", " ": f"{record['verification']['max_abs_diff']:.1e}"})
    print_table(rows, title=f"Extracted {record['family']} model")
