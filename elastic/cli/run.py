"""`elastic run`: inference with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Json
from elastic.cli.output import print_report, reported
from elastic.cli.verify import Backend, Bundle


@reported
def run(
    bundle: Bundle,
    inputs: Annotated[
        Path,
        typer.Option("--input", metavar="FILE", help=".npz with the inputs, .npy with the first, or .txt."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help=".npz to write; it must not exist.")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Decoders: continue the inputs.")] = None,
    subnet: Annotated[str | None, typer.Option(metavar="NAME", help="One of a bundle that has several.")] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The best subnet that takes at most so long on the inputs, such as 8ms."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime. Default: all CPUs.")] = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on arrays or texts."""
    from elastic.export import run_bundle

    report = run_bundle(
        bundle,
        inputs,
        output,
        threads=threads,
        max_new_tokens=max_new_tokens,
        subnet=subnet,
        deadline=deadline,
        backend=backend,
    )
    print_report(report, as_json)
