"""Options of `elastic export` about precision, and what it prints of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic.cli.output import print_table
from elastic.errors import ElasticError

if TYPE_CHECKING:
    from elastic.export.precision.mix import QuantizationReport
    from elastic.export.precision.options import PrecisionOptions
    from elastic.recipe import Recipe

PANEL = "Precision"

Precision = Annotated[
    str | None,
    typer.Option(
        help="fp32, fp16, int8 (CPUs, nothing to calibrate), int8-static (calibrated), or int4 (weights alone, CPUs). "
        "Default: for which the subnet was chosen, or fp32.",
        rich_help_panel=PANEL,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="int8-static: cpu-x86, cpu-arm, or tensorrt.", rich_help_panel=PANEL, metavar="TARGET"),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Unlabelled inputs: texts (.txt, .parquet), or arrays (.npz). A quarter judges, and does not calibrate.",
        rich_help_panel=PANEL,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Or: its training data calibrates, its validation data and metric judge. A checkpoint has its own.",
        rich_help_panel=PANEL,
    ),
]
NumCalibration = Annotated[
    int, typer.Option("--num-calibration", min=2, help="How many examples calibrate.", rich_help_panel=PANEL)
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Linear layers that stay in float: '*.output.dense'; repeatable.",
        rich_help_panel=PANEL,
    ),
]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Measure what each linear layer costs alone.", rich_help_panel=PANEL)
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        metavar="DROP",
        help="Exclude the layers that hurt, until no more is lost: 1%, or 0.5 of the metric.",
        rich_help_panel=PANEL,
    ),
]
BlockSize = Annotated[
    int, typer.Option(help="int4: weights that share a scale: 16, 32, 64, 128, 256.", rich_help_panel=PANEL)
]
HalfNorms = Annotated[bool, typer.Option("--fp16-norms", help="fp16: norms and Softmax too.", rich_help_panel=PANEL)]
HalfIO = Annotated[bool, typer.Option("--fp16-io", help="fp16: inputs and outputs too.", rich_help_panel=PANEL)]
Rest = Annotated[
    str,
    typer.Option(metavar="PRECISION", help="int8-static: what is not int8 is fp32, or fp16.", rich_help_panel=PANEL),
]


def read_precision(
    folder: Path,
    *,
    calibration: Path | None,
    recipe: Path | None,
    variant: str | None,
    overrides: list[str] | None,
    num_calibration: int,
    max_drop: str | None,
    exclude: list[str] | None,
    **settings: Any,
) -> PrecisionOptions:
    """Return the options of a precision, with their calibration data.

    Raises:
        ElasticError: if an option cannot be read, or the data is not there.
    """
    from elastic.export.precision.calibration import calibration_data, calibration_of_task
    from elastic.export.precision.options import Drop, PrecisionOptions

    drop = None if max_drop is None else Drop.read(max_drop)
    data = None
    if calibration is not None and recipe is not None:
        raise ElasticError(f"give either --calibration {calibration} or --recipe {recipe}, not both.")
    if recipe is not None:
        from elastic.data import load_task

        data = calibration_of_task(load_task(_read_recipe(recipe, overrides, variant), folder), num_calibration)
    elif overrides or variant:
        raise ElasticError("--set and --variant change a recipe; add --recipe.")
    elif calibration is not None:
        data = calibration_data(calibration, folder, num_calibration)
    return PrecisionOptions(calibration=data, max_drop=drop, exclude=tuple(exclude or ()), **settings)


def _read_recipe(path: Path, overrides: list[str] | None, variant: str | None) -> Recipe:
    from elastic.recipe import load_recipe, parse_recipe

    if not path.is_dir():
        return load_recipe(path, overrides or [], variant=variant)
    from elastic.record import read_record

    recorded = read_record(path).recipe
    if recorded is None:
        raise ElasticError(f"{path} names no data; give the recipe itself: --recipe RECIPE.yaml.")
    if overrides or variant:
        raise ElasticError(f"--set and --variant change a recipe file, not the checkpoint {path}; leave them out.")
    return parse_recipe(recorded, str(path))


def recorded_precision(folder: Path) -> dict[str, str]:
    """Return the options of the export that a checkpoint was chosen for; none if it was chosen for float32, or not."""
    from elastic.record import RECORD_NAME, read_record

    recorded = read_record(folder).precision if (folder / RECORD_NAME).is_file() else None
    return {name: value for name, value in (recorded or {}).items() if name in ("precision", "target")}


def print_quantization(report: QuantizationReport) -> None:
    """Print which linear layers are quantized, what each of them costs, and what all of them cost."""
    if any(layer.cosine_loss is not None for layer in report.layers):
        rows = [
            {
                "layer": layer.name,
                "MACs": f"{100 * layer.macs_share:.1f}%",
                "parameters": layer.params,
                "cosine lost": "" if layer.cosine_loss is None else f"{layer.cosine_loss:.1e}",
                "precision": report.precision if layer.quantized else "float",
            }
            for layer in sorted(report.layers, key=lambda layer: -(layer.cosine_loss or 0.0))
        ]
        print_table(rows, title="What quantizing each linear layer alone costs")
    if report.fp32 is not None and report.quantized is not None:
        share = "" if report.macs_share is None else f"; {100 * report.macs_share:.0f}% of multiply-adds quantized"
        typer.echo(
            f"{report.fp32.metric} ({report.fp32.split}, {report.fp32.num_examples}): {report.fp32.value:.4g} in "
            f"float32, {report.quantized.value:.4g} in {report.precision}{share}."
        )
