"""Docstrings as pairs: whole, balanced, and held out by file."""

from __future__ import annotations

import pytest

from elastic.data.docstrings import _documented, docstrings_task
from elastic.recipe import DocstringData
from tests.embedder import write_embedder


def test_a_function_is_its_name_and_parameters():
    source = '''
class A:
    def parse_header(self, raw_text):
        """Return the header of
        a message. It may be empty.

        More.
        """
    def short(self):
        """Too short."""
    async def no_docstring(x): pass
'''
    assert list(_documented(source)) == [("parse header raw text", "Return the header of a message")]
    assert list(_documented("def broken(:")) == []


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    embedder = write_embedder(tmp_path_factory.mktemp("embedder") / "embedder")
    return docstrings_task(DocstringData(source="docstrings", max_train=500), str(embedder))


def test_pairs_are_balanced_and_enough(task):
    assert len(task.datasets["train"]) == 500
    for split in ("validation", "test"):
        scores = [row["labels"] for row in task.datasets[split]]
        assert len(scores) >= 200
        assert sum(scores) == len(scores) / 2
