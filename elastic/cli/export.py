"""`elastic export`: an extracted checkpoint becomes a bundle for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Json, Output
from elastic.cli.output import note, print_json, reported
from elastic.errors import CheckpointError, ElasticError, did_you_mean

TARGETS = ("onnx",)
_DATA_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")


@reported
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `elastic extract` wrote.")],
    output: Output,
    to: Annotated[str, typer.Option("--to", help="Target format: onnx.")] = "onnx",
    as_json: Json = False,
) -> None:
    """Export an extracted model to ONNX, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.checkpoint import load, read_record
    from elastic.export import export_onnx
    from elastic.folder import check_output

    check_output(output)
    record = read_record(folder)
    if record.kind != "extracted":
        raise CheckpointError(
            f"{folder} is a universal model; cut a subnet first: elastic extract {folder} --flops 50%."
        )
    report = export_onnx(
        load(folder),
        output,
        subnet=record.subnet,
        cost=record.cost,
        quality=record.test_quality or record.quality,
        preprocess=record.training.get("preprocess"),
        extra_files=[folder / name for name in _DATA_FILES if (folder / name).is_file()],
    )
    if as_json:
        print_json({"output": str(output), "max_abs_diff": report.max_abs_diff, "tolerance": report.tolerance})
        return
    typer.echo(f"Wrote {output}: ONNX and PyTorch differ by {report.max_abs_diff:.1e} at most.")
    note(f"Next: elastic verify {output}; elastic bench {output}")
