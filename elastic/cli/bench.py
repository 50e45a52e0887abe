"""`elastic bench`: how fast a bundle runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic.cli.options import Json
from elastic.cli.output import print_report, reported
from elastic.cli.verify import Bundle


@reported
def bench(
    bundle: Bundle,
    against: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Another bundle, measured in turns with this one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples of one call.")] = 1,
    sequence: Annotated[int | None, typer.Option(min=1, help="Tokens of one example, for texts.")] = None,
    past: Annotated[int, typer.Option(min=0, help="Tokens that a decoder has cached.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Measured calls.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure the latency of a bundle on this machine, alone or in turns with another."""
    from elastic.export import bench_bundle, compare_latency

    settings: dict[str, Any] = {
        "batch": batch,
        "sequence": sequence,
        "past": past,
        "threads": threads,
        "rounds": rounds,
    }
    if against is None:
        print_report(bench_bundle(bundle, **settings), as_json)
    else:
        print_report(compare_latency([bundle, against], **settings), as_json)
