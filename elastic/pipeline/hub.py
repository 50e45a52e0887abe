"""Uploads a finished checkpoint folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from elastic.errors import CheckpointError, HubError
from elastic.pipeline.card import CARD_NAME, TAG


def check_repo_id(repo_id: str) -> None:
    """Check that a repository can have this name, before anything is computed for it.

    Raises:
        CheckpointError: if it cannot.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"'{repo_id}' is no name of a repository; write USER/NAME ({error})") from None


def push_to_hub(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint folder, and return the address of the repository, which is made if it is not there.

    A model card in the repository that Elastic did not write stays as it is.

    Args:
        folder: the finished checkpoint; it is only read.
        repo_id: ``user/name``, or ``name`` in the user's own namespace.
        private: whether a repository that is made now is private; one that is there stays what it is.

    Raises:
        HubError: if there is no token, or the Hub cannot be reached or refuses.
    """
    if get_token() is None:
        raise HubError(_failed(folder, repo_id, "there is no token; run `hf auth login`, or set HF_TOKEN"))
    api = HfApi()
    try:
        # None leaves it to the user's or the organisation's own setting.
        created = api.create_repo(repo_id, private=private or None, exist_ok=True)
        ignored = [CARD_NAME] if _has_foreign_card(api, created.repo_id) else None
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name} with Elastic",
            ignore_patterns=ignored,
        )
    except Exception as error:  # whatever happens between here and the Hub: its client has no common base class
        raise HubError(_failed(folder, repo_id, " ".join(str(error).split()) or type(error).__name__)) from error
    return str(created)


def _has_foreign_card(api: HfApi, repo_id: str) -> bool:
    try:
        card = Path(api.hf_hub_download(repo_id, CARD_NAME)).read_text()
    except RemoteEntryNotFoundError:
        return False
    return TAG not in card


def _failed(folder: Path, repo_id: str, why: str) -> str:
    return (
        f"{folder} is complete, but was not uploaded to '{repo_id}': {why.rstrip('.')}; try again with "
        f"`hf upload {repo_id} {folder}`."
    )
