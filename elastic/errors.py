"""Errors that Elastic raises on purpose: one sentence each, for the person who reads it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ElasticError(Exception):
    """Bad input: says what was wrong, where, and what would be right (exit code 2)."""

    exit_code = 2


class SpaceError(ElasticError, ValueError):
    """A search space or a subnet that does not fit the model."""


class FamilyError(ElasticError, ValueError):
    """A model whose architecture Elastic does not know, or knows not to support."""


class BudgetError(ElasticError, ValueError):
    """A budget that cannot be read, or that no subnet meets."""


class RecipeError(ElasticError, ValueError):
    """A recipe that does not say what it must, or names data that is not there."""


class CheckpointError(ElasticError, ValueError):
    """A folder that is not the checkpoint or the bundle that it should be."""


class OutputExistsError(ElasticError, FileExistsError):
    """An output path that is already taken; nothing is overwritten."""

    def __str__(self) -> str:
        return str(self.args[0])


class OutputError(ElasticError):
    """An output that cannot be written: a full disk, a read-only folder."""


class CheckError(ElasticError):
    """A check that ran and failed: parity, hashes (exit code 1)."""

    exit_code = 1


class HubError(ElasticError):
    """An upload that did not happen (exit code 1); the folder is complete all the same."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else the list of known names."""
    by_lower = {one.lower(): one for one in sorted(known)}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean '{by_lower[nearest[0]]}'?"
    return f"; known: {', '.join(by_lower.values())}"
