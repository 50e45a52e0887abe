"""`elastic convert`: a pretrained model becomes a universal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic.cli.options import (
    Correct,
    InputShape,
    Json,
    Output,
    Overrides,
    Variant,
    read_input_shape,
    read_method,
    read_space_option,
)
from elastic.cli.output import note, print_json, print_table, reported
from elastic.cli.push import Private, PushToHub, check_push, push
from elastic.errors import ElasticError, SpaceError

if TYPE_CHECKING:
    from elastic.selection import Measured
    from elastic.space import Subnet


@reported
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Pretrained model: a folder, or a name on the Hub.")],
    output: Output,
    space: Annotated[
        str | None,
        typer.Option(help="Choices of each axis: '{ffn: [0.5, 1.0], layers: [4, 6]}', or a file that says so."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe: its data calibrates, its metric fills the table; its space, where none is given."),
    ] = None,
    variant: Variant = None,
    overrides: Overrides = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Calibrate on this text or parquet file, or Hub dataset.")
    ] = None,
    num_calibration: Annotated[int, typer.Option(min=1, help="How many examples calibrate.")] = 512,
    order: Annotated[
        str | None,
        typer.Option(
            help="Neurons and heads by: magnitude, activation, first_order, pivoted_qr, reconstruction, or none. "
            "Default: activation with data, magnitude without."
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(help="Layers leave by: cosine, angular, output; or even. Default: cosine with data, else even."),
    ] = None,
    correct: Correct = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    input_shape: InputShape = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Order a pretrained model's neurons, heads and layers, so that its smaller subnets work without training."""
    check_push(push_to_hub, private)
    if not space and recipe is None:
        raise SpaceError("no space is given; add --space '{ffn: [0.5, 1.0]}', or a --recipe that has one.")
    has_data = recipe is not None or calibration is not None
    if correct and recipe is None:
        raise ElasticError("--correct measures quality; add a --recipe that says on what.")
    from elastic.folder import check_output
    from elastic.ordering import CORRECTIONS, DEPTH_METHODS, METHODS
    from elastic.pipeline import convert as run
    from elastic.pipeline import plan_conversion
    from elastic.pipeline.conversion import default_shapes, read_config
    from elastic.recipe import load_recipe
    from elastic.space import SearchSpace

    check_output(output)
    correction = read_method("--correct", correct, CORRECTIONS)
    settings = None if recipe is None else load_recipe(recipe, overrides or [], variant=variant)
    plan = plan_conversion(
        model,
        read_space_option(space) if space else SearchSpace.from_dict(settings.space if settings else {}),
        recipe=settings,
        ordering=_choice("--order", order, METHODS, "none", "activation" if has_data else "magnitude"),
        depth=_choice("--depth", depth, DEPTH_METHODS, "even", "cosine" if has_data else None),
        input_shapes=None if input_shape is None else read_input_shape(input_shape, default_shapes(read_config(model))),
    )
    if not as_json:
        print_table(plan.rows(), title=f"Plan: {model} to {output}")
    if dry_run:
        if as_json:
            print_json({"plan": {row["what"]: row["value"] for row in plan.rows()}})
        return
    result = run(
        plan,
        output,
        recipe=settings,
        calibration=calibration,
        num_calibration=num_calibration,
        correction=correction,
        report=note,
    )
    if as_json:
        print_json(
            {
                "output": str(output),
                "plan": {row["what"]: row["value"] for row in plan.rows()},
                "max_relative_diff": result.difference,
                "one_shot": [
                    {**point.to_dict(), "corrected": result.corrected.get(point.subnet)} for point in result.points
                ],
            }
        )
        push(output, push_to_hub, private)
        return
    if result.points:
        _print_one_shot(result.points, result.corrected)
    note(f"The full model's outputs changed by {result.difference:.1e} of their size.")
    note(f"Next: elastic info {output}" + (f"; elastic extract {output} --flops 50% -o small" if recipe else ""))
    push(output, push_to_hub, private)


def _choice(option: str, given: str | None, known: Sequence[str], nothing: str, default: str | None) -> Any:
    """Return the chosen method, None for the word that means none."""
    if given is None:
        return default
    return None if given == nothing else read_method(option, given, [*known, nothing])


def _print_one_shot(points: Sequence[Measured], corrected: Mapping[Subnet, float]) -> None:
    from elastic.cost import format_quantity

    quality, largest = points[0].quality, points[0].cost
    measured_on = f"{quality.metric} ({quality.split}, {quality.num_examples})"
    rows = []
    for point in points:
        row = {
            "subnet": f"{point.name}: {point.subnet.describe()}" if point.name else point.subnet.describe(),
            "FLOPs": format_quantity(point.cost.flops),
            "share": f"{100 * point.cost.flops / largest.flops:.0f}%",
            "parameters": format_quantity(point.cost.params),
            measured_on: f"{point.quality.value:.4g}",
        }
        if corrected:
            row["corrected"] = f"{corrected[point.subnet]:.4g}" if point.subnet in corrected else ""
        rows.append(row)
    print_table(rows, title="As it is, without training")
