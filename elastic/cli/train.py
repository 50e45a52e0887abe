"""`elastic train`: a recipe becomes a universal model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic.cli.options import Json, Output, Overrides, Variant
from elastic.cli.output import note, print_json, print_table, reported
from elastic.cli.push import Private, PushToHub, check_push, push

if TYPE_CHECKING:
    from elastic.recipe.routers import RoutersSection

CAPACITY_TOLERANCE = 0.05


@reported
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe: a YAML file.")],
    output: Output,
    variant: Variant = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run beside OUT.")] = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Train the universal model of a recipe."""
    check_push(push_to_hub, private)
    from elastic.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [], variant=variant)
    from accelerate import PartialState

    from elastic.cli.training_log import TrainingLog
    from elastic.pipeline import train as run

    metrics = run(settings, output, resume=resume, progress_bar=sys.stderr.isatty(), callbacks=[TrainingLog()])
    if not PartialState().is_main_process:
        return
    if as_json:
        print_json({"output": str(output), "metrics": metrics})
        push(output, push_to_hub, private)
        return
    rows = [
        {"metric on validation data": name.removeprefix("eval_"), "value": f"{value:.4g}"}
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))
    ]
    print_table(rows, title=f"Universal model in {output}")
    if settings.routers is not None and "eval_capacity" in metrics:
        _note_missed_capacity(settings.routers, metrics["eval_capacity"])
    note(f"Next: elastic info {output}; elastic extract {output} --flops 50% -o small")
    push(output, push_to_hub, private)


def _note_missed_capacity(routers: RoutersSection, capacity: float) -> None:
    """Say what to do where routers compute another share of sequences than was asked for."""
    asked = routers.mean_capacity
    excess = capacity - asked
    if excess > CAPACITY_TOLERANCE or (excess < -CAPACITY_TOLERANCE and routers.penalty == "absolute"):
        note(
            f"The routers compute {capacity:.1%} of what they decide about, and {asked:.1%} was asked for: "
            f"set a larger routers.weight (now {routers.weight:g}), or train longer."
        )
