"""`elastic export`: a checkpoint becomes a bundle for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Json, Output
from elastic.cli.output import note, print_json, reported
from elastic.errors import ElasticError, did_you_mean

TARGETS = ("onnx",)


@reported
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint: extracted, stock, or an embedder.")],
    output: Output,
    to: Annotated[str, typer.Option("--to", help="Target format: onnx.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, or int8 (for CPUs).")] = "fp32",
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embedders: return only so many leading dimensions.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.export import export_onnx, read_source
    from elastic.folder import check_output

    check_output(output)
    source = read_source(folder, embedding_dim=embedding_dim)
    report = export_onnx(source.model, output, precision=precision, **source.details)
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
    typer.echo(f"Wrote {output}: ONNX and PyTorch differ by {report.max_abs_diff:.1e} at most.")
    if report.similarity is not None:
        typer.echo(
            f"Cosine of int8 outputs to float32: {report.similarity.mean:.4f} (lowest {report.similarity.min:.4f})."
        )
    note(f"Next: elastic verify {output}; elastic bench {output}")
