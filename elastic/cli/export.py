"""`elastic export`: a checkpoint becomes a bundle for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli import precision as options
from elastic.cli.options import Json, Output, Overrides, Variant
from elastic.cli.output import note, print_json, progress, reported
from elastic.errors import ElasticError, did_you_mean

TARGETS = ("onnx",)


@reported
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint: extracted, stock, or an embedder.")],
    output: Output,
    to: Annotated[str, typer.Option("--to", help="Target format: onnx.")] = "onnx",
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embedders: return only so many leading dimensions.")
    ] = None,
    precision: options.Precision = "fp32",
    target: options.Target = "cpu-x86",
    calibration: options.CalibrationOption = None,
    recipe: options.RecipeOption = None,
    variant: Variant = None,
    overrides: Overrides = None,
    num_calibration: options.NumCalibration = 512,
    exclude: options.Exclude = None,
    sensitivity: options.Sensitivity = False,
    max_drop: options.MaxDrop = None,
    block_size: options.BlockSize = 32,
    fp16_norms: options.HalfNorms = False,
    fp16_io: options.HalfIO = False,
    rest: options.Rest = "fp32",
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.export import export_onnx, read_source
    from elastic.folder import check_output

    check_output(output)
    source = read_source(folder, embedding_dim=embedding_dim)
    settings = options.read_precision(
        folder, calibration=calibration, recipe=recipe, variant=variant, overrides=overrides,
        num_calibration=num_calibration, max_drop=max_drop, exclude=exclude, target=target, sensitivity=sensitivity,
        block_size=block_size, fp16_norms=fp16_norms, fp16_io=fp16_io, rest=rest,
    )  # fmt: skip
    with progress("Measuring layers") as report_progress:
        report = export_onnx(
            source.model,
            output,
            precision=precision,
            precision_options=settings,
            progress=report_progress,
            **source.details,
        )
    if as_json:
        print_json(
            {
                "output": str(output),
                "max_abs_diff": report.max_abs_diff,
                "tolerance": report.tolerance,
                "quality": report.manifest.quality,
            }
        )
        return
    if report.quantization is not None:
        options.print_quantization(report.quantization)
    typer.echo(f"Wrote {output}: ONNX and PyTorch differ by {report.max_abs_diff:.1e} at most.")
    if report.similarity is not None:
        typer.echo(
            f"Cosine of {precision} outputs to float32: {report.similarity.mean:.4f} "
            f"(lowest {report.similarity.min:.4f}), random inputs."
        )
    note(f"Next: elastic verify {output}; elastic bench {output}")
