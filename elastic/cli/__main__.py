"""Lets launchers start the command line: ``torchrun -m elastic.cli train ...``."""

from elastic.cli.app import main

main()
