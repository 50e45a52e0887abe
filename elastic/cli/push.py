"""`--push-to-hub`: what several commands do with a finished folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.output import note
from elastic.errors import ElasticError

PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="REPO_ID", help="Upload the finished folder to this repository on the Hub."),
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to-hub: a new repository is private.")]


def check_push(repo_id: str | None, private: bool) -> None:
    """Check what ``--push-to-hub`` and ``--private`` ask for, before anything is computed.

    Raises:
        ElasticError: if the repository cannot have this name, or there is none to be private.
    """
    if repo_id is not None:
        from elastic.pipeline import check_repo_id

        check_repo_id(repo_id)
    elif private:
        raise ElasticError("--private is about the repository of --push-to-hub REPO_ID, and none is given.")


def push(folder: Path, repo_id: str | None, private: bool) -> None:
    """Upload a finished folder, if ``--push-to-hub`` asks for it.

    Raises:
        HubError: if that fails; the folder stays.
    """
    if repo_id is None:
        return
    from elastic.pipeline import push_to_hub

    note(f"Uploaded to {push_to_hub(folder, repo_id, private=private)}.")
