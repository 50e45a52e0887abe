"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from elastic.extraction import is_portable
from elastic.families import get_family
from elastic.nested import get_elastic, make_elastic
from elastic.space import Subnet
from tests.tiny import MODELS, SPACE, SPACE_OF_ALL_HEADS, sweep

torch.set_num_threads(1)
settings.register_profile(
    "elastic", deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("elastic")


def make_tiny_elastic(model):
    """Make a tiny model elastic along all axes that its family has."""
    family = get_family(model.config)
    space = SPACE_OF_ALL_HEADS if family.heads_together else SPACE
    return make_elastic(model, space if family.hidden_fixed else replace(space, hidden=(0.5, 1.0)))


def fitting(model, subnet: Subnet) -> Subnet:
    """Return the nearest larger subnet that the model can run: heads leave in groups."""
    group = get_elastic(model).dims.heads_per_group
    heads = tuple(-(-heads // group) * group for heads in subnet.heads)
    return replace(subnet, heads=heads, hidden=None if get_elastic(model).dims.hidden_fixed else subnet.hidden)


def portable_subnets(model) -> list[Subnet]:
    """Return the uniform subnets, but the largest, that the family says stock transformers can load."""
    elastic = get_elastic(model)
    smaller = [s for s in elastic.resolved.uniform_subnets() if s != elastic.resolved.largest]
    return [s for s in smaller if is_portable(elastic.family, model.config, s)]


few_families = pytest.mark.parametrize("universal", sweep(), indirect=True)
"""For what depends on the structure of a model at most: representatives, and all families under ``-m slow``."""


@pytest.fixture(scope="session")
def _universal_models():
    return {name: make_tiny_elastic(build()) for name, build in MODELS.items()}


@pytest.fixture(params=sorted(MODELS))
def universal(request, _universal_models):
    """A universal model of each family; a copy, so that a test may do to it what it likes."""
    return copy.deepcopy(_universal_models[request.param])


def subnets(
    num_layers: int = 3, ffn: int = 64, heads: tuple[int, ...] = (0, 2, 4), hidden: int = 32
) -> st.SearchStrategy[Subnet]:
    """Any subnet that the tiny models can run: any widths, any sub-layers skipped, one layer kept at least."""
    layers = st.lists(
        st.tuples(st.integers(0, ffn), st.sampled_from(heads)), min_size=num_layers, max_size=num_layers
    ).filter(lambda choices: any(f or h for f, h in choices))
    streams = st.none() | st.integers(1, hidden - 1)
    return st.builds(
        lambda choices, hidden: Subnet(tuple(f for f, _ in choices), tuple(h for _, h in choices), hidden),
        layers,
        streams,
    )
