"""The command line: `elastic --help`."""

from elastic.cli.app import main

__all__ = ["main"]
