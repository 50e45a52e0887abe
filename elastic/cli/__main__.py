"""Lets launchers start the command line: ``accelerate launch -m elastic.cli train ...``."""

from elastic.cli.app import main

main()
