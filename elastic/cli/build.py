"""`elastic build`: TensorRT engines on the device that runs them."""

from __future__ import annotations

from typing import Annotated

import typer

from elastic.cli.options import Json
from elastic.cli.output import note, print_report, reported
from elastic.cli.verify import Bundle


@reported
def build(
    bundle: Bundle,
    workspace: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Scratch memory of one kernel: 512MiB. Default: no limit.")
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="Take the weights from the bundle whenever an engine is loaded.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build engines that are there already.")] = False,
    subnet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one of a bundle with several subnets; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build TensorRT engines here, and verify each on the parity samples."""
    from elastic.export import build_bundle

    report = build_bundle(bundle, workspace=workspace, stripped=strip, force=force, subnets=subnet or (), say=note)
    print_report(report, as_json)
