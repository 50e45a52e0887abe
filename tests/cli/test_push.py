"""`--push-to-hub`: the finished folder is uploaded, and stays whatever the Hub says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from elastic.errors import HubError
from elastic.pipeline import hub
from tests.cli.conftest import elastic

RESPONSE = SimpleNamespace(headers={}, request=None)


class FakeHub:
    """Stands in for HfApi: remembers what it is asked, and has one repository."""

    card: str | None = None
    fails: Exception | None = None

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, **arguments):
        if self.fails:
            raise self.fails
        self.calls.append(("create_repo", repo_id, arguments))
        full = repo_id if "/" in repo_id else f"me/{repo_id}"

        class Url(str):
            repo_id = full

        return Url(f"https://huggingface.co/{full}")

    def hf_hub_download(self, repo_id, name):
        if self.card is None:
            raise RemoteEntryNotFoundError("no such file", response=RESPONSE)
        path = self.folder / name
        path.write_text(self.card)
        return str(path)

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        files = sorted(path.name for path in Path(folder_path).iterdir() if path.name not in (ignore_patterns or ()))
        self.calls.append(("upload_folder", repo_id, files))
        return SimpleNamespace()


@pytest.fixture
def fake(monkeypatch, tmp_path):
    api = FakeHub()
    api.folder = tmp_path / "repository"
    api.folder.mkdir()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return api


FILES = ["README.md", "config.json", "elastic.json", "model.safetensors", "modeling_elastic.py"]
SUBNET = '{"ffn": [16, 0], "heads": [4, 2]}'


def test_extract_uploads_the_whole_folder(universal_copy, tmp_path, fake):
    out = tmp_path / "out"
    result = elastic("extract", universal_copy, "--subnet", SUBNET, "-o", out, "--push-to-hub", "me/small", "--private")
    assert result.code == 0, result.err
    assert fake.calls == [
        ("create_repo", "me/small", {"private": True, "exist_ok": True}),
        ("upload_folder", "me/small", FILES),
    ]
    assert "Uploaded to https://huggingface.co/me/small." in result.err
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_json_stays_json(universal_copy, tmp_path, fake):
    out = tmp_path / "out"
    result = elastic("extract", universal_copy, "--subnet", SUBNET, "-o", out, "--push-to-hub", "small", "--json")
    assert result.json["output"] == str(out)
    assert fake.calls == [
        # Not false: that would make it public against the user's or the organisation's own setting.
        ("create_repo", "small", {"private": None, "exist_ok": True}),
        ("upload_folder", "me/small", FILES),
    ]


def test_a_card_that_somebody_wrote_stays(universal_dir, fake):
    fake.card = "# My model\n"
    hub.push_to_hub(universal_dir, "me/mine")
    assert "README.md" not in fake.calls[-1][2]
    fake.card = (universal_dir / "README.md").read_text()
    hub.push_to_hub(universal_dir, "me/mine")
    assert "README.md" in fake.calls[-1][2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("[Errno 111] Connection refused"), "Connection refused"),
        (HfHubHTTPError("403 Forbidden: You don't\nhave rights", response=RESPONSE), "You don't have rights"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_upload_that_fails_leaves_the_folder(universal_copy, tmp_path, fake, error, words):
    fake.fails = error
    out = tmp_path / "out"
    result = elastic("extract", universal_copy, "--subnet", SUBNET, "-o", out, "--push-to-hub", "me/small")
    assert result.code == 1
    message = result.err.splitlines()[-1]
    assert message.startswith(f"Error: {out} is complete, but was not uploaded to 'me/small': ")
    assert words in message
    assert message.endswith(f"try again with `hf upload me/small {out}`.")
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_without_a_token(universal_dir, fake, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(HubError, match=r"there is no token; run `hf auth login`, or set HF_TOKEN; try again with"):
        hub.push_to_hub(universal_dir, "me/small")
    assert not fake.calls


def test_without_a_network(universal_dir, monkeypatch):
    """The real client, offline as in all tests."""
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    with pytest.raises(HubError, match=r"is complete, but was not uploaded to 'me/small': .*offline"):
        hub.push_to_hub(universal_dir, "me/small")


@pytest.mark.parametrize("command", ["train", "extract", "heal", "convert"])
def test_names_are_checked_before_anything_is_done(command, tmp_path, fake):
    arguments = ["no.yaml"] if command == "train" else ["nowhere", "no.yaml"] if command == "heal" else ["nowhere"]
    result = elastic(command, *arguments, "-o", tmp_path / "out", "--push-to-hub", "a/b/c")
    assert result.code == 2
    assert "'a/b/c' is no name of a repository; write USER/NAME" in result.err
    result = elastic(command, *arguments, "-o", tmp_path / "out", "--private")
    assert result.code == 2
    assert "--private is about the repository of --push-to-hub REPO_ID, and none is given." in result.err
    assert not (tmp_path / "out").exists()
    assert not fake.calls
