"""A subnet that is cut out computes what it computed inside the universal model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from transformers import AutoModelForImageClassification, GPT2Config, GPT2Model

from elastic.errors import CheckError, SpaceError
from elastic.extraction import (
    extract,
    is_portable,
    largest_difference,
    sample_inputs,
    take_layer_sizes,
    verify_extraction,
)
from elastic.families import get_family
from elastic.nested import active, get_elastic, make_elastic
from elastic.space import SearchSpace, Subnet
from tests.conftest import few_families, fitting, portable_subnets, subnets
from tests.tiny import DECODERS, MODELS


@given(subnet=subnets())
def test_extracted_equals_active_subnet(universal, subnet):
    subnet = fitting(universal, subnet)
    small = extract(universal, subnet)
    inputs = sample_inputs(universal.config, batch=3)
    assert verify_extraction(universal, subnet, small, inputs) <= 1e-5


@few_families
@given(subnet=subnets())
def test_extracted_model_has_no_dead_weights(universal, subnet):
    subnet = fitting(universal, subnet)
    small = extract(universal, subnet)
    used = {name for name, p in small.named_parameters() if p.numel()}
    assert used == {name for name, _ in small.named_parameters()}
    largest = extract(universal, get_elastic(universal).resolved.largest)
    if subnet != get_elastic(universal).resolved.largest:
        assert small.num_parameters() < largest.num_parameters()


def test_uniform_subnets_are_stock_models(universal):
    elastic = get_elastic(universal)
    for subnet in elastic.resolved.uniform_subnets():
        if is_portable(elastic.family, universal.config, subnet):
            small = extract(universal, subnet)
            rebuilt = type(universal)(small.config)
            assert {n: p.shape for n, p in rebuilt.named_parameters()} == {
                n: p.shape for n, p in small.named_parameters()
            }


def test_stock_loading_in_a_process_without_elastic(_universal_models, tmp_path):
    expected = {}
    for name, model in _universal_models.items():
        subnet = portable_subnets(model)[0]
        extract(model, subnet).save_pretrained(tmp_path / name)
        inputs = sample_inputs(model.config, batch=2)
        torch.save(inputs, tmp_path / name / "inputs.pt")
        with active(model, subnet), torch.no_grad():
            expected[name] = model(**inputs)[0]
    script = f"""
import sys, pathlib
sys.modules["elastic"] = None
import torch, transformers
for folder in pathlib.Path({str(tmp_path)!r}).iterdir():
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(folder / "inputs.pt"))[0], folder / "out.pt")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for name, output in expected.items():
        assert largest_difference(output, torch.load(tmp_path / name / "out.pt")) <= 1e-5, name


def test_uniform_subnets_load_stock(universal, tmp_path):
    """The smallest and the largest that the family claims, by the class that the configuration names."""
    subnets = portable_subnets(universal)
    inputs = sample_inputs(universal.config, batch=2)
    for index, subnet in enumerate((subnets[0], subnets[-1])):
        extract(universal, subnet).save_pretrained(tmp_path / str(index))
        stock = type(universal).from_pretrained(tmp_path / str(index)).eval()
        with active(universal, subnet), torch.no_grad():
            assert largest_difference(universal(**inputs)[0], stock(**inputs)[0]) <= 1e-5


@few_families
@pytest.mark.parametrize(
    "subnet",
    [
        Subnet(ffn=(64, 0, 64), heads=(4, 4, 4)),
        Subnet(ffn=(64, 64, 64), heads=(4, 0, 4)),
        Subnet(ffn=(16, 64, 64), heads=(4, 4, 4)),
        Subnet(ffn=(64, 64, 64), heads=(2, 4, 4)),
    ],
)
def test_stock_loading_refuses_layers_that_differ(universal, subnet, tmp_path):
    subnet = fitting(universal, subnet)
    if subnet == get_elastic(universal).resolved.largest:
        pytest.skip("heads leave together")
    extract(universal, subnet).save_pretrained(tmp_path / "small")
    assert take_layer_sizes(json.loads((tmp_path / "small" / "config.json").read_text()))
    with pytest.raises(Exception, match=r"[Pp]er.?layer|ambiguous|'mlp_ratio' expected int, got float"):
        type(universal).from_pretrained(tmp_path / "small")


@pytest.mark.parametrize("universal", DECODERS, indirect=True)
def test_generate_with_cache_equals_without(universal):
    prompt = torch.randint(1, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    arguments = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    for subnet in [
        Subnet(ffn=(0, 64, 16), heads=(0, 4, 2)),
        Subnet(ffn=(64, 64, 16), heads=(0, 4, 2)),
        Subnet(ffn=(64, 0, 16), heads=(4, 4, 0)),
        Subnet(ffn=(16, 16, 0), heads=(2, 2, 0)),
    ]:
        small = extract(universal, subnet)
        cached = small.generate(prompt, use_cache=True, **arguments)
        assert torch.equal(cached, small.generate(prompt, use_cache=False, **arguments))
        assert cached.shape == (2, 13)
        with active(universal, subnet):
            assert torch.equal(cached, universal.generate(prompt, use_cache=True, **arguments))


def test_layers_are_renumbered(universal):
    small = extract(universal, Subnet(ffn=(64, 0, 64), heads=(4, 0, 4)))
    indices = [module.layer_idx for module in small.modules() if getattr(module, "layer_idx", None) is not None]
    assert sorted(set(indices)) in ([], [0, 1])
    assert get_elastic(universal).family.dims(small.config).num_layers == 2


def test_layer_types_are_cut(universal):
    body_config = get_elastic(universal).family.body_config
    for name in get_elastic(universal).family.layer_lists:
        values = getattr(body_config(universal.config), name, None)
        small = extract(universal, Subnet(ffn=(0, 64, 64), heads=(0, 4, 4)))
        assert getattr(body_config(small.config), name, None) == (values and values[1:])


@few_families
def test_extraction_keeps_dtype_and_shares_no_memory(universal):
    universal.to(torch.bfloat16)
    small = extract(universal, get_elastic(universal).resolved.largest)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    pointers = {p.data_ptr() for p in universal.parameters()}
    assert not pointers & {p.data_ptr() for p in small.parameters()}


@few_families
def test_verification_notices_a_wrong_weight(universal):
    subnet = get_elastic(universal).resolved.largest
    small = extract(universal, subnet)
    with torch.no_grad():
        list(small.parameters())[-1].add_(0.1)
    with pytest.raises(CheckError, match="differs from the universal one by"):
        verify_extraction(universal, subnet, small, sample_inputs(universal.config, batch=2))


@few_families
def test_width_above_the_maximum_is_refused(universal):
    with pytest.raises(SpaceError, match="ffn=65 of layer 1 is above the maximum of this model, which is 64"):
        extract(universal, Subnet(ffn=(64, 65, 64), heads=(4, 4, 4)))


def test_auto_class_loads_a_uniform_vit(_universal_models, tmp_path):
    model = _universal_models["vit"]
    extract(model, get_elastic(model).resolved.uniform(ffn=32, heads=2)).save_pretrained(tmp_path / "vit")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    assert loaded.config.head_dim == 8
    assert loaded.config.num_attention_heads == 2


@pytest.mark.parametrize("name", sorted(MODELS))
def test_head_counts_that_do_not_divide_the_hidden_size(name, tmp_path):
    """They load stock where the family says so, and are never called portable where transformers refuses them."""
    model = MODELS[name]()
    family = get_family(model.config)
    if not family.config_has_head_dim:
        pytest.skip("no stock configuration holds fewer heads")
    if family.kv_heads_field:
        setattr(model.config, family.kv_heads_field, 4)
        model = type(model)(model.config).eval()
    make_elastic(model, SearchSpace())
    subnet = Subnet(ffn=(64,) * 3, heads=(3,) * 3)
    assert is_portable(family, model.config, subnet) != family.heads_divide_hidden
    small, inputs = extract(model, subnet), sample_inputs(model.config, batch=2)
    verify_extraction(model, subnet, small, inputs)
    if not family.heads_divide_hidden:
        small.save_pretrained(tmp_path)
        verify_extraction(model, subnet, type(model).from_pretrained(tmp_path), inputs)


def test_gpt2_without_a_stated_ffn_width(tmp_path):
    """It is four times the hidden size then."""
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 60}
    model = make_elastic(GPT2Model(GPT2Config(**sizes)).eval(), SearchSpace(ffn=[0.5, 1.0]))
    subnet = get_elastic(model).resolved.smallest
    assert subnet.ffn == (16, 16)
    small, inputs = extract(model, subnet), sample_inputs(model.config, batch=2)
    assert small.config.n_inner == 16
    assert extract(model, get_elastic(model).resolved.largest).config.n_inner is None
    small.save_pretrained(tmp_path)
    verify_extraction(model, subnet, GPT2Model.from_pretrained(tmp_path), inputs)
