"""`elastic bench`: how fast a bundle runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic.cli.options import Json
from elastic.cli.output import print_report, reported
from elastic.cli.verify import Backend, Bundle

Spinning = Annotated[
    bool, typer.Option("--spinning/--no-spinning", help="Whether threads that wait for work keep their CPU busy.")
]


@reported
def bench(
    bundle: Bundle,
    against: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Another bundle, measured in turns with this one.")
    ] = None,
    subnet: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of a bundle that has several. Default: all, in turns.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples of one call.")] = 1,
    sequence: Annotated[int | None, typer.Option(min=1, help="Tokens of one example, for texts.")] = None,
    past: Annotated[int, typer.Option(min=0, help="Tokens that a decoder has cached.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Measured calls.")] = 50,
    spinning: Spinning = True,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Measure the latency of a bundle on this machine, alone or in turns with another."""
    from elastic.export import bench_bundle, bench_subnets, compare_latency, read_bundle

    settings: dict[str, Any] = {
        "batch": batch,
        "sequence": sequence,
        "past": past,
        "threads": threads,
        "spinning": spinning,
        "rounds": rounds,
        "backend": backend,
    }
    if against is not None:
        print_report(compare_latency([bundle, against], subnet=subnet, **settings), as_json)
    elif subnet is None and read_bundle(bundle).members:
        print_report(bench_subnets(bundle, **settings), as_json)
    else:
        print_report(bench_bundle(bundle, subnet=subnet, **settings), as_json)
