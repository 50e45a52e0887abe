"""`elastic verify`: whether a bundle is whole, and computes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Json
from elastic.cli.output import print_report, reported

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `elastic export` wrote.")]


Backend = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="onnxruntime, or tensorrt. Default: TensorRT where engines were built."),
]


@reported
def verify(bundle: Bundle, backend: Backend = None, as_json: Json = False) -> None:
    """Check the hashes of a bundle, and its outputs against the expected ones."""
    from elastic.export import verify_bundle

    print_report(verify_bundle(bundle, backend=backend), as_json)
