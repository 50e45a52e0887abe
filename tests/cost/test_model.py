"""The analytic cost model equals what torch counts, for every family and any subnet."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from elastic.cost import CostModel, peak_activation_bytes
from elastic.errors import ElasticError
from elastic.extraction import extract
from elastic.families import TOKEN_INPUTS, input_shapes
from elastic.nested import active, get_elastic
from elastic.space import Subnet
from tests.conftest import fitting, subnets


def shapes(model, tokens=12, batch=1):
    return input_shapes(model.config, batch=batch, tokens=tokens)


def forward(model, stated):
    inputs = {
        name: torch.zeros(shape, dtype=torch.int64 if name in TOKEN_INPUTS else torch.float32)
        for name, shape in stated.items()
    }
    if model.can_generate():
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        return model(**inputs, **({"use_cache": False} if model.can_generate() else {}))


@given(subnet=subnets(), tokens=st.integers(1, 40), batch=st.integers(1, 3))
def test_flops_equal_the_flop_counter(universal, subnet, tokens, batch):
    subnet = fitting(universal, subnet)
    universal.set_attn_implementation("eager")
    stated = shapes(universal, tokens, batch)
    with FlopCounterMode(display=False) as counter, active(universal, subnet):
        forward(universal, stated)
    assert CostModel.of(universal, stated).cost(subnet).flops == counter.get_total_flops()


@given(subnet=subnets())
def test_flops_and_parameters_equal_those_of_the_extracted_model(universal, subnet):
    subnet = fitting(universal, subnet)
    small = extract(universal, subnet)
    small.set_attn_implementation("eager")
    cost = CostModel.of(universal, shapes(universal)).cost(subnet)
    with FlopCounterMode(display=False) as counter:
        forward(small, shapes(universal))
    assert cost.flops == counter.get_total_flops()
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.weight_bytes == sum(p.numel() * p.element_size() for p in small.parameters())
    assert cost.macs * 2 == cost.flops


@given(subnet=subnets())
def test_activation_memory_equals_a_traced_forward(universal, subnet):
    subnet = fitting(universal, subnet)
    """That of the extracted model."""
    small = extract(universal, subnet)
    small.set_attn_implementation("eager")
    traced = peak_activation_bytes(lambda: forward(small, shapes(universal)), small)
    assert CostModel.of(universal, shapes(universal)).cost(subnet).activation_bytes == traced


def test_no_weights_are_materialised(universal):
    model = CostModel.of(universal, shapes(universal))
    assert {p.device.type for p in model._model.parameters()} == {"meta"}


def test_bfloat16_halves_the_weights(universal):
    full = Subnet(ffn=(64,) * 3, heads=(4,) * 3)
    single = CostModel.of(universal, shapes(universal)).cost(full).weight_bytes
    universal.to(torch.bfloat16)
    assert CostModel.of(universal, shapes(universal)).cost(full).weight_bytes * 2 == single


@pytest.mark.parametrize("stated", [torch.float32, "float32", None])
def test_memory_is_that_of_the_weights_whatever_the_configuration_says(_universal_models, stated):
    model = copy.deepcopy(_universal_models["bert"]).to(torch.bfloat16)
    model.config.dtype = stated
    narrow = Subnet(ffn=(64,) * 3, heads=(4,) * 3, hidden=16)
    cost = CostModel.of(model, shapes(model)).cost(narrow)
    assert cost.weight_bytes == 2 * cost.params


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "bert"])
def test_activations_have_the_type_of_the_model(name, _universal_models):
    model = copy.deepcopy(_universal_models[name]).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    subnet = Subnet(ffn=(64, 32, 16), heads=(4, 2, 4))
    small = extract(model, subnet)
    small.set_attn_implementation("eager")
    inputs = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in shapes(model).items() if n not in TOKEN_INPUTS}
    with torch.no_grad():
        traced = peak_activation_bytes(lambda: small(**inputs) if inputs else forward(small, shapes(model)), small)
    # Masks of a few bytes differ between the meta device and this one.
    assert CostModel.of(model, shapes(model)).cost(subnet).activation_bytes == pytest.approx(traced, rel=0.01)


def test_a_saved_model_has_a_cost(universal, tmp_path):
    """Saving leaves the name of the type in the configuration."""
    before = CostModel.of(universal, shapes(universal)).cost(get_elastic(universal).resolved.largest)
    universal.save_pretrained(tmp_path)
    assert CostModel.of(universal, shapes(universal)).cost(get_elastic(universal).resolved.largest) == before


def test_an_impossible_input_shape_is_one_sentence(_universal_models):
    with pytest.raises(ElasticError, match="does not take the input shape pixel_values 1x1x9x9"):
        CostModel.of(_universal_models["vit"], {"pixel_values": (1, 1, 9, 9)})
