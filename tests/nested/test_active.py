"""The active subnet: restored always, private to model and thread, kept by activation checkpointing."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from elastic.errors import ElasticError, SpaceError
from elastic.extraction import extract, largest_difference, sample_inputs
from elastic.families import output_dim
from elastic.nested import active, evaluating, get_elastic, make_elastic, resumed_from
from elastic.space import SearchSpace, Subnet
from tests.conftest import few_families, fitting, make_tiny_elastic
from tests.tiny import DECODERS, MODELS, SPACE, tiny_llama, tiny_vit

SMALL = Subnet(ffn=(16, 0, 32), heads=(2, 4, 0), hidden=20)


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_make_elastic_changes_nothing_but_classes(name):
    plain, model = MODELS[name](), MODELS[name]()
    inputs = sample_inputs(plain.config, batch=3)
    expected = outputs(plain, inputs)
    elastic = make_tiny_elastic(model)
    assert elastic is model
    assert type(model) is type(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(outputs(model, inputs), expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_universal_checkpoint_is_a_stock_checkpoint(name, tmp_path):
    model = make_tiny_elastic(MODELS[name]())
    model.save_pretrained(tmp_path)
    stock = type(model).from_pretrained(tmp_path).eval()
    inputs = sample_inputs(model.config, batch=2)
    assert largest_difference(outputs(stock, inputs), outputs(model, inputs)) == 0


@few_families
def test_full_model_returns_after_an_exception(universal):
    inputs = sample_inputs(universal.config, batch=2)
    full = outputs(universal, inputs)
    with pytest.raises(RuntimeError, match="boom"), active(universal, fitting(universal, SMALL)):
        assert not torch.equal(outputs(universal, inputs), full)
        raise RuntimeError("boom")
    assert torch.equal(outputs(universal, inputs), full)


def test_evaluating_gives_every_module_its_mode_back():
    model = MODELS["bert"]().train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert modes == [module.training for module in model.modules()]


@few_families
def test_blocks_nest(universal):
    inputs = sample_inputs(universal.config, batch=2)
    other = get_elastic(universal).resolved.smallest
    with active(universal, fitting(universal, SMALL)):
        small = outputs(universal, inputs)
        with active(universal, other):
            assert not torch.equal(outputs(universal, inputs), small)
        assert torch.equal(outputs(universal, inputs), small)


@few_families
def test_two_models_do_not_disturb_each_other(universal):
    copied = copy.deepcopy(universal)
    inputs = sample_inputs(universal.config, batch=2)
    full = outputs(universal, inputs)
    with active(universal, fitting(universal, SMALL)):
        assert torch.equal(outputs(copied, inputs), full)
        assert not torch.equal(outputs(universal, inputs), full)


@few_families
def test_two_threads_do_not_disturb_each_other(universal):
    inputs = sample_inputs(universal.config, batch=2)
    subnets = [
        fitting(universal, SMALL),
        get_elastic(universal).resolved.smallest,
        get_elastic(universal).resolved.largest,
    ]
    expected = [outputs(extract(universal, subnet), inputs) for subnet in subnets]
    barrier = threading.Barrier(len(subnets))
    differences: dict[int, float] = {}

    def run(index):
        with active(universal, subnets[index]):
            barrier.wait()
            differences[index] = max(largest_difference(expected[index], outputs(universal, inputs)) for _ in range(10))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(subnets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(differences[index] for index in range(len(subnets))) <= 1e-5


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_the_subnet_of_the_forward(universal, use_reentrant):
    if not universal.supports_gradient_checkpointing:
        pytest.skip("transformers cannot checkpoint this model")
    inputs = sample_inputs(universal.config, batch=2)

    def gradients(model):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with active(model, fitting(model, SMALL)):
            loss = model(**inputs, **({"use_cache": False} if model.can_generate() else {}))[0].square().mean()
        loss.backward()  # outside of the block, on purpose
        return {name: p.grad for name, p in model.named_parameters()}

    expected = gradients(copy.deepcopy(universal))
    universal.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    actual = gradients(universal)
    for name, gradient in expected.items():
        assert (gradient is None) == (actual[name] is None), name
        if gradient is not None:
            assert torch.allclose(gradient, actual[name], atol=1e-6), name


def test_inactive_weights_get_no_gradient(universal):
    inputs = sample_inputs(universal.config, batch=2)
    with active(universal, fitting(universal, SMALL)):
        universal(**inputs)[0].square().mean().backward()
    _, layers = get_elastic(universal).family.find_layers(universal)
    family = get_elastic(universal).family
    for path, blocks in family.ffn_blocks(universal.config).items():
        linear = layers[0].get_submodule(path)
        up = linear.weight.grad.movedim(output_dim(linear), 0)
        for block in blocks:
            assert up[block.rows(16)].abs().sum() > 0
            assert up[block.rows(64)][16:].abs().sum() == 0
    assert layers[1].get_submodule(family.ffn_inputs[0]).weight.grad is None
    assert layers[2].get_submodule(family.head_output).weight.grad is None


@pytest.mark.parametrize("universal", ["dinov2"], indirect=True)
def test_drop_path_takes_skipped_sub_layers(universal):
    config = copy.deepcopy(universal.config)
    config.drop_path_rate = 0.5
    model = make_elastic(type(universal)(config), SPACE).train()
    with active(model, SMALL):
        model(**sample_inputs(config, batch=2))[0].sum().backward()


def test_hidden_states_are_recorded(universal):
    inputs = sample_inputs(universal.config, batch=2)
    with active(universal, fitting(universal, Subnet(ffn=(16, 0, 32), heads=(2, 0, 4)))), torch.no_grad():
        states = universal(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert torch.equal(states[1], states[2])


@pytest.mark.parametrize("universal", DECODERS, indirect=True)
def test_a_cache_counts_tokens_where_the_first_attention_is_skipped(universal):
    ids = torch.randint(1, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with active(universal, Subnet(ffn=(64, 64, 64), heads=(0, 4, 4))), torch.no_grad():
        whole = universal(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        before = universal(ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8], use_cache=True)
        cache = before.past_key_values
        assert cache.get_seq_length() == 8
        last = universal(ids[:, 8:], attention_mask=mask, position_ids=positions[:, 8:], past_key_values=cache)
    assert largest_difference(whole, last.logits[:, -1]) <= 1e-5


def test_a_plain_model_is_refused():
    with pytest.raises(ElasticError, match=r"is not elastic; call elastic.make_elastic"), active(tiny_vit(), SMALL):
        pass


@few_families
def test_making_elastic_twice_is_refused(universal):
    with pytest.raises(ElasticError, match="elastic already"):
        make_elastic(universal, SPACE)


@few_families
def test_wrong_subnets_are_refused(universal):
    with (
        pytest.raises(SpaceError, match="the subnet has 1 layers, and the model has 3"),
        active(universal, Subnet((64,), (4,))),
    ):
        pass


def test_a_space_that_does_not_fit_leaves_the_model_as_it_was():
    model = tiny_llama()
    with pytest.raises(SpaceError, match="does not divide into key-value groups of 2"):
        make_elastic(model, SearchSpace(heads=[1, 4]))
    assert not hasattr(model, "_elastic")
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


def test_a_model_with_adapters_is_refused_untouched():
    class Adapter(torch.nn.Linear):
        pass

    model = tiny_vit()
    model.vit.layers[2].mlp.fc1.__class__ = Adapter
    with pytest.raises(ElasticError, match=r"vit.layers.2.mlp.fc1 is a Adapter, not a plain Linear"):
        make_elastic(model, SPACE)
    assert type(model.vit.layers[0].mlp.fc1) is torch.nn.Linear


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_exit_from_the_stream_is_the_subnet_without_later_layers(name):
    model = make_tiny_elastic(MODELS[name]()).eval()
    inputs = {**sample_inputs(model.config, batch=2), "output_hidden_states": True}
    largest = get_elastic(model).resolved.largest
    exit_2 = Subnet((*largest.ffn[:2], 0), (*largest.heads[:2], 0))
    with torch.no_grad():
        stream = model(**inputs)["hidden_states"][2]
        with active(model, exit_2):
            expected = model(**inputs)
        with resumed_from(model, stream):
            actual = model(**inputs)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual["hidden_states"][-1], expected["hidden_states"][-1])


def test_an_exit_keeps_its_gradient_under_activation_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = make_elastic(tiny_llama(), SPACE).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = {**sample_inputs(model.config, batch=2), "use_cache": False, "output_hidden_states": True}
        stream = model(**inputs)["hidden_states"][1]
        with resumed_from(model, stream):
            outputs = model(**inputs)
        outputs[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)
