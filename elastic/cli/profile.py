"""`elastic profile`: the latency table of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.bench import Spinning
from elastic.cli.options import Json
from elastic.cli.output import note, print_report, reported
from elastic.cli.verify import Backend


@reported
def profile(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles of subnets of one model.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE", help=".json to write; it must not exist.")],
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Examples of one call; repeatable. Default: 1.")
    ] = None,
    sequence: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of one example, for texts; repeatable. Default: 128.")
    ] = None,
    past: Annotated[int, typer.Option(min=0, help="Tokens that a decoder has cached.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    spinning: Spinning = True,
    rounds: Annotated[int, typer.Option(min=1, help="Measured calls.")] = 50,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Measure every subnet of some bundles, in turns, into this machine's latency table.

    Bundles of several precisions take turns too; each precision gets a table of its own, TABLE-int8.json for example.
    """
    from elastic.export import profile_bundles

    report = profile_bundles(
        bundles,
        output,
        batches=batch or (1,),
        sequences=sequence,
        past=past,
        threads=threads,
        spinning=spinning,
        rounds=rounds,
        backend=backend,
    )
    print_report(report, as_json)
    tables = " ".join(f"--table {one.output_file}" for one in (report, *report.others))
    note(f"Next, with the universal model: elastic search DIR --latency 8ms {tables}")
