"""The `elastic` command: one file a subcommand, heavy imports inside them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from elastic import __version__
from elastic.cli.bench import bench
from elastic.cli.build import build
from elastic.cli.convert import convert
from elastic.cli.evaluate import evaluate
from elastic.cli.export import export
from elastic.cli.extract import extract
from elastic.cli.heal import heal
from elastic.cli.info import info
from elastic.cli.pareto import pareto
from elastic.cli.plan import plan
from elastic.cli.profile import profile
from elastic.cli.run import run
from elastic.cli.search import search
from elastic.cli.train import train
from elastic.cli.verify import verify

app = typer.Typer(
    name="elastic",
    help="Train one universal Transformer, and cut from it the sub-model that any budget asks for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _command in (train, convert, plan, info, search, extract, heal, pareto, export, verify, build, bench, profile, run):
    app.command()(_command)
app.command("eval")(evaluate)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:  # Before the command began: reading its options takes a moment.
        typer.echo("Interrupted.", err=True)
        sys.exit(130)
