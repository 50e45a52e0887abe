from __future__ import annotations

import copy

import pytest


@pytest.fixture(params=["bert", "llama", "vit"])
def universal(request, _universal_models):
    """Search knows no architectures: a few are enough here."""
    return copy.deepcopy(_universal_models[request.param])
