"""`elastic export`: a checkpoint becomes a bundle for a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic.cli import precision as options
from elastic.cli.options import Candidates, Json, Output, Overrides, Variant
from elastic.cli.output import note, print_json, progress, reported
from elastic.errors import ElasticError, did_you_mean

if TYPE_CHECKING:
    from elastic.export import ExportReport

ONNX, FAMILY, ELASTIC, TENSORRT = "onnx", "family", "elastic-onnx", "tensorrt"
TARGETS = (ONNX, FAMILY, ELASTIC, TENSORRT)
ENGINES_OF_SEVERAL = "tensorrt of a universal model"
SEVERAL, ENGINES = "Families and elastic graphs", "TensorRT and serving"


@reported
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A checkpoint: extracted, stock, or an embedder. For several subnets: universal."
        ),
    ],
    output: Output,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx; tensorrt (of a universal model: a family of engines); family (several subnets, one file of "
            "weights); elastic-onnx (one graph).",
        ),
    ] = ONNX,
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embedders: return only so many leading dimensions.")
    ] = None,
    precision: options.Precision = None,
    target: options.Target = None,
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
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            "--subnet",
            metavar="JSON",
            help="Family: a subnet of it, as a JSON file or the JSON itself; repeatable.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    flops: Annotated[
        list[str] | None,
        typer.Option(
            help="Family: the best subnet within so many FLOPs (50%, 2G) is one of it; repeatable.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    candidates: Candidates = 48,
    unmeasured: Annotated[
        bool, typer.Option("--unmeasured", help="Do not measure the quality of subnets.", rich_help_panel=SEVERAL)
    ] = False,
    for_profiling: Annotated[
        bool,
        typer.Option(
            "--for-profiling",
            help="Family: the fewest subnets whose latencies tell those of all others, for `elastic profile`.",
            rich_help_panel=SEVERAL,
        ),
    ] = False,
    routed: Annotated[
        bool,
        typer.Option("--routed", help="elastic-onnx: with the model's routers inside.", rich_help_panel=SEVERAL),
    ] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZES",
            help="TensorRT: batch=1,sequence=16:64:128 (min:opt:max); repeatable.",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    trt_version: Annotated[
        str,
        typer.Option(
            metavar="VERSION", help="TensorRT: the oldest version that should read the graph.", rich_help_panel=ENGINES
        ),
    ] = "10.3",
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a model repository for Triton as well, from the bundle.", rich_help_panel=ENGINES
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, or for TensorRT, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.record import is_universal

    made = ENGINES_OF_SEVERAL if to == TENSORRT and is_universal(folder) else to
    for name, given, targets in (
        ("--subnet", subnet, (FAMILY, ENGINES_OF_SEVERAL)),
        ("--flops", flops, (FAMILY, ENGINES_OF_SEVERAL)),
        ("--for-profiling", for_profiling, (FAMILY, ENGINES_OF_SEVERAL)),
        ("--unmeasured", unmeasured, (FAMILY, ELASTIC, ENGINES_OF_SEVERAL)),
        ("--routed", routed, (ELASTIC,)),
        ("--profile", profile and to != TENSORRT, (TENSORRT,)),
        ("--embedding-dim", embedding_dim, (ONNX, TENSORRT)),
        ("--precision", precision not in (None, "fp32") and to == ELASTIC, (ONNX, TENSORRT, FAMILY)),
        ("--calibration", calibration, (ONNX, TENSORRT)),
    ):
        if given and made not in targets:
            raise ElasticError(f"{name} is for --to {' or '.join(targets)}, not for {made}; leave it out.")
    from elastic.folder import check_output

    for path in filter(None, (output, triton)):
        check_output(path)
    if made in (FAMILY, ENGINES_OF_SEVERAL):
        from elastic.cli.export_universal import family_of
        from elastic.export import TensorRTTarget

        family_of(
            folder, output, subnet or [], flops or [], candidates, not unmeasured, as_json,
            for_profiling=for_profiling, precision=precision or "fp32",
            target=TensorRTTarget(tuple(profile or ()), trt_version) if to == TENSORRT else None,
        )  # fmt: skip
        _write_triton(output, triton, as_json)
        return
    if to == ELASTIC:
        from elastic.cli.export_universal import elastic_graph_of

        elastic_graph_of(folder, output, routed, not unmeasured, as_json)
        _write_triton(output, triton, as_json)
        return
    from elastic.export import TensorRTTarget, export_onnx, read_source

    source = read_source(folder, embedding_dim=embedding_dim)
    recorded = {} if precision else options.recorded_precision(folder)
    precision = precision or recorded.get("precision", "fp32")
    target = target or recorded.get("target", "cpu-x86")
    if recorded:
        note(f"In {precision}, for which this subnet was chosen; --precision says otherwise.")
    settings = options.read_precision(
        folder, calibration=calibration, recipe=recipe, variant=variant, overrides=overrides,
        num_calibration=num_calibration, max_drop=max_drop, exclude=exclude,
        target=TENSORRT if to == TENSORRT else target, sensitivity=sensitivity,
        block_size=block_size, fp16_norms=fp16_norms, fp16_io=fp16_io, rest=rest,
    )  # fmt: skip
    with progress("Measuring layers") as report_progress:
        report = export_onnx(
            source.model,
            output,
            precision=precision,
            precision_options=settings,
            progress=report_progress,
            target=TensorRTTarget(tuple(profile or ()), trt_version) if to == TENSORRT else None,
            **source.details,
        )
    _write_triton(output, triton, as_json)
    _print_report(report, output, precision, as_json)
    if not as_json:
        there = f"on the device: cd {output.name}; python3 -m runtime build"
        note(f"Next: {there if to == TENSORRT else f'elastic verify {output}; elastic bench {output}'}")


def _write_triton(bundle: Path, repository: Path | None, as_json: bool) -> None:
    if repository is None:
        return
    from elastic.export import write_triton

    names = write_triton(bundle, repository)
    if not as_json:
        typer.echo(f"Wrote {repository}, a model repository for Triton with {', '.join(names)}.")


def _print_report(report: ExportReport, output: Path, precision: str, as_json: bool) -> None:
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
    for one in report.manifest.profiles:
        typer.echo(f"Profile {one}")
