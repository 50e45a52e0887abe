"""`elastic heal`: a short training after the cut."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Json, Output, Overrides, Variant
from elastic.cli.output import note, print_json, reported
from elastic.cli.push import Private, PushToHub, check_push, push


@reported
def heal(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Extracted model: what `elastic extract` wrote.")],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe: its data, objective and arguments.")],
    output: Output,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The universal model that teaches. Default: the recipe's model.pretrained."),
    ] = None,
    variant: Variant = None,
    overrides: Overrides = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Train an extracted model by the model it was cut from, until held-out quality stops rising."""
    check_push(push_to_hub, private)
    from elastic.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [], variant=variant)
    from elastic.cli.training_log import TrainingLog
    from elastic.pipeline import heal as run

    result = run(folder, settings, output, teacher=teacher, progress_bar=sys.stderr.isatty(), callbacks=[TrainingLog()])
    if as_json:
        record = result.record.model_dump(mode="json", exclude={"recipe", "files"}, exclude_none=True)
        print_json({"output": str(output), "before": result.before.to_dict(), **record})
        push(output, push_to_hub, private)
        return
    before, after = result.before, result.after
    measured_on = f"{after.metric} ({after.split}, {after.num_examples})"
    typer.echo(f"Healed to {output}: {measured_on} {before.value:.4g} -> {after.value:.4g}")
    if after.value == before.value:
        note("Nothing was better than the model as it was, so its weights are unchanged.")
    if result.record.test_quality:
        test = result.record.test_quality
        note(f"On test data, used only for this: {test['metric']} {test['value']:.4g} ({test['num_examples']}).")
    push(output, push_to_hub, private)
