"""Costs of decoders by phase equal what torch counts with a real key-value cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from elastic.cost import Budget, CostModel, DecoderCostModel, Phase, peak_activation_bytes
from elastic.cost.phases import GivenCache
from elastic.errors import ElasticError
from elastic.extraction import extract
from elastic.nested import active
from elastic.selection import search
from elastic.space import Subnet
from tests.conftest import fitting, subnets
from tests.tiny import DECODERS

decoders = pytest.mark.parametrize("universal", DECODERS, indirect=True)
phases = st.builds(Phase, st.sampled_from(["prefill", "decode"]), st.integers(1, 20))
FULL = Subnet(ffn=(64,) * 3, heads=(4,) * 3)


def run(model, phase, cache):
    """Run the phase; the mask is given, as `generate` gives it."""
    inputs = torch.zeros((1, phase.new), dtype=torch.int64)
    mask = torch.ones((1, phase.cached + phase.new), dtype=torch.int64)
    with torch.no_grad():
        return model(input_ids=inputs, attention_mask=mask, past_key_values=cache, use_cache=True)


def filled_cache(model, phase):
    cache = DynamicCache(config=model.config)
    if phase.cached:
        run(model, Phase("prefill", phase.cached), cache)
    return cache


def costs(model, phase):
    return DecoderCostModel(type(model), model.config, phase)


def test_memory_is_of_the_type_that_is_given(_universal_models):
    model = _universal_models["llama"]
    single, half = (
        DecoderCostModel(type(model), model.config, Phase("decode", 8), dtype=dtype).cost(FULL)
        for dtype in (None, torch.bfloat16)
    )
    assert single.weight_bytes == 2 * half.weight_bytes
    assert single.cache_bytes == 2 * half.cache_bytes


@decoders
@settings(max_examples=5)
@given(subnet=subnets(), phase=phases)
def test_flops_and_cache_equal_those_of_a_real_pass(universal, subnet, phase):
    subnet = fitting(universal, subnet)
    universal.set_attn_implementation("eager")
    cost = costs(universal, phase).cost(subnet)
    with active(universal, subnet):
        cache = filled_cache(universal, phase)
        with FlopCounterMode(display=False) as counter:
            run(universal, phase, cache)
    assert cost.flops == counter.get_total_flops()
    small = extract(universal, subnet)
    cache = filled_cache(small, phase)
    run(small, phase, cache)
    assert cost.cache_bytes == sum(
        tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )
    assert cost.memory_bytes == cost.weight_bytes + cost.activation_bytes + cost.cache_bytes


@decoders
@settings(max_examples=5)
@given(subnet=subnets(), phase=phases)
def test_activation_memory_equals_a_traced_pass(universal, subnet, phase):
    """Over a cache that is written in place."""
    subnet = fitting(universal, subnet)
    small = extract(universal, subnet)
    small.set_attn_implementation("eager")
    model = costs(universal, phase)
    given = torch.zeros(1, 4, phase.cached + phase.new, model._head_dim)
    cache = GivenCache(small.config, given, phase.cached)
    traced = peak_activation_bytes(lambda: run(small, phase, cache), small, [given])
    assert model.cost(subnet).activation_bytes == traced


@decoders
def test_prefill_has_the_flops_of_a_forward_pass(universal):
    plain = CostModel.of(universal, {"input_ids": (1, 9)}).cost(FULL)
    prefill = costs(universal, Phase("prefill", 9)).cost(FULL)
    assert (prefill.flops, prefill.params) == (plain.flops, plain.params)
    assert prefill.cache_bytes > 0 == plain.cache_bytes


def test_halves_of_the_cache(_universal_models):
    model = _universal_models["llama"]
    full, decode = costs(model, Phase("decode", 40)), Subnet(ffn=(64,) * 3, heads=(2,) * 3)
    assert full.cost(FULL).cache_bytes == 3 * 2 * 41 * 2 * 8 * 4
    assert 2 * full.cost(decode).cache_bytes == full.cost(FULL).cache_bytes
    assert full.cost(FULL).to_dict()["phase"] == {"name": "decode", "context": 40}


@pytest.mark.parametrize(
    ("name", "phase", "message"),
    [
        ("llama", ("decode", 64), "decode at a context of 64 needs 65 positions, and the model takes 64"),
        ("llama", ("decode", 0), "context=0 must be 1 or more"),
        ("llama", ("train", 3), "'train' is not one of prefill, decode"),
        ("bert", ("decode", 3), "'bert' generate no text"),
    ],
)
def test_bad_input_is_one_sentence(_universal_models, name, phase, message):
    with pytest.raises(ElasticError, match=message):
        costs(_universal_models[name], Phase(*phase))


def test_search_within_a_budget_of_memory_at_a_context(_universal_models):
    """The cache alone decides here: half of the heads keep half of it."""
    model = _universal_models["llama"]
    decode = costs(model, Phase("decode", 60))
    half, full = (decode.cost(Subnet(ffn=(64,) * 3, heads=(heads,) * 3)) for heads in (2, 4))
    budget = Budget(memory=(half.memory_bytes + full.memory_bytes) // 2)
    found = search(model, budget, lambda subnet: sum(subnet.ffn) + sum(subnet.heads), cost_model=decode)
    assert found.best.cost.memory_bytes <= (half.memory_bytes + full.memory_bytes) // 2
    assert found.best.cost == decode.cost(found.best.subnet)
    assert found.best.cost.phase == {"name": "decode", "context": 60}
