"""What lies behind an embedder's Transformer, where its hidden size is elastic: pooling follows, weights do not."""

from __future__ import annotations

import json
from pathlib import Path

from elastic.data.embedder import MODULES_NAME, is_embedder
from elastic.errors import RecipeError
from elastic.space import ResolvedSpace

_FOLLOWING = ("Pooling", "Normalize", "Dropout")
"""Modules of sentence-transformers that take any width."""


def check_head(name: str | None, space: ResolvedSpace) -> None:
    """Check that what follows a Transformer takes a narrower stream.

    Args:
        name: the embedder's folder; anything that is no embedder is fine.
        space: which hidden sizes it shall run.

    Raises:
        RecipeError: if the hidden size is elastic, and a module with weights of its own reads the stream.
    """
    folder = Path(name or "")
    if len(space.hidden) == 1 or not is_embedder(folder):
        return
    for entry in json.loads((folder / MODULES_NAME).read_text())[1:]:
        kind = entry["type"].rpartition(".")[2]
        if kind not in _FOLLOWING:
            raise RecipeError(
                f"{name} has a {kind} after its Transformer, which takes the whole hidden size; leave 'hidden' out of "
                "the space."
            )
