"""The stream: found in any architecture, sliced for reads alone, never mistaken for another size."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.nn.utils import parameters_to_vector
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Dinov2Config,
    Dinov2ForImageClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from elastic.errors import FamilyError, SpaceError
from elastic.extraction import extract, largest_difference, sample_inputs, verify_extraction
from elastic.families import Family, get_family
from elastic.nested import Stream, active, get_elastic, make_elastic
from elastic.space import SearchSpace, Subnet
from tests.tiny import MODELS, tiny_bert_masked_lm, tiny_llama, tiny_vit

NARROW = Subnet(ffn=(64, 16, 64), heads=(4, 4, 2), hidden=20)


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def stream_of(model) -> Stream:
    return Stream.of(get_family(model.config), type(model), model.config)


def sizes_of(model, stream, hidden):
    """The parameters that a slice has, by Stream.take alone."""
    return {name: tuple(stream.take(name, p, hidden).shape) for name, p in model.named_parameters()}


def test_what_is_in_the_stream_of_a_llama():
    stream = stream_of(tiny_llama())
    assert stream.hidden == 32
    assert {name: [dim for dim, _ in dims] for name, dims in stream.outside.items()} == {
        "model.embed_tokens.weight": [1],
        "model.norm.weight": [0],
        "lm_head.weight": [1],
    }
    assert {name: [dim for dim, _ in dims] for name, dims in stream.layer.items()} == {
        "self_attn.q_proj.weight": [1],
        "self_attn.k_proj.weight": [1],
        "self_attn.v_proj.weight": [1],
        "self_attn.o_proj.weight": [0],
        "mlp.gate_proj.weight": [1],
        "mlp.up_proj.weight": [1],
        "mlp.down_proj.weight": [0],
        "input_layernorm.weight": [0],
        "post_attention_layernorm.weight": [0],
    }


def test_norms_inside_of_heads_are_not_in_the_stream():
    stream = stream_of(MODELS["qwen3"]())
    assert not any("q_norm" in name or "k_norm" in name for name in stream.layer)


def test_a_classifier_over_two_tokens_takes_two_slices():
    stream = stream_of(MODELS["dinov2"]())
    assert [(dim, [block.start for block in blocks]) for dim, blocks in stream.dims("classifier.weight")] == [
        (1, [0, 32])
    ]


@pytest.mark.parametrize("tie", [True, False])
def test_sizes_that_happen_to_equal_the_hidden_size(tie):
    """Vocabulary, positions, labels and neurons: 32 as well."""
    bert = BertForMaskedLM(
        BertConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=32,
                   max_position_embeddings=32, type_vocab_size=32, tie_word_embeddings=tie)
    ).eval()  # fmt: skip
    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=32,
                    max_position_embeddings=32, tie_word_embeddings=tie, pad_token_id=0)
    ).eval()  # fmt: skip
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_inner=32, n_layer=2, n_head=4, n_positions=32, vocab_size=32,
                   bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
    ).eval()  # fmt: skip
    for model in (bert, llama, gpt2):
        make_elastic(model, SearchSpace())
        subnet = Subnet((32, 8), (4, 2 if model is not llama else 4), hidden=12)
        small = extract(model, subnet)
        verify_extraction(model, subnet, small, sample_inputs(model.config, batch=2))
        assert small.get_input_embeddings().weight.shape == (32, 12)
        assert small.get_output_embeddings().weight.shape == (32, 12)
        assert (small.get_output_embeddings().weight is small.get_input_embeddings().weight) == tie


@pytest.mark.parametrize("embedding_size", [16, 32, 64])
def test_embeddings_of_another_size_are_no_stream(embedding_size):
    config = ElectraConfig(hidden_size=32, embedding_size=embedding_size, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=64, vocab_size=60, max_position_embeddings=40, num_labels=3)  # fmt: skip
    model = make_elastic(ElectraForSequenceClassification(config).eval(), SearchSpace())
    # Heads of 8, so that 16 hidden dimensions with two heads are a stock model, and 20 are none.
    for subnet in (Subnet((64, 64), (2, 2), hidden=16), Subnet((64, 64), (2, 2), hidden=20)):
        small = extract(model, subnet)
        verify_extraction(model, subnet, small, sample_inputs(config, batch=2))
        width = small.get_input_embeddings().weight.shape[1]
        assert width == (subnet.hidden if embedding_size == 32 else embedding_size)


def test_a_weight_that_grows_otherwise_is_refused():
    class Odd(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.odd = torch.nn.Linear(config.hidden_size + 1, 2)

    config = tiny_llama().config
    with pytest.raises(FamilyError, match="dimension 1 of 'odd.weight' grows with the hidden size, and is no multiple"):
        Stream.of(get_family(config), Odd, config)


def test_a_weight_that_comes_with_the_hidden_size_is_refused():
    class Odd(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            if config.hidden_size == 32:
                self.odd = torch.nn.Linear(2, 2)

    config = tiny_llama().config
    with pytest.raises(FamilyError, match="'odd.weight' is not in a model of this architecture with another hidden"):
        Stream.of(get_family(config), Odd, config)


def test_families_that_keep_their_width_say_why():
    for name, reason in (("gemma3", "the embeddings of Gemma are scaled"), ("siglip", "pooling head has attention")):
        model = MODELS[name]()
        with pytest.raises(SpaceError, match=f"the axis 'hidden' is not elastic here, because .*{reason}"):
            make_elastic(model, SearchSpace(hidden=[0.5, 1.0]))
        make_elastic(model, SearchSpace())
        with (
            pytest.raises(SpaceError, match=f"hidden=16 is not possible, because .*{reason}"),
            active(model, Subnet((64,) * 3, (4,) * 3, hidden=16)),
        ):
            pass


def test_parameters_stay_what_they_are():
    """Whole for optimizers, checkpoints and readers; sliced for reads while a slice runs."""
    model = make_elastic(tiny_bert_masked_lm(), SearchSpace())
    embedding, norm = model.get_input_embeddings(), model.get_submodule("bert.embeddings.LayerNorm")
    assert embedding.weight is dict(embedding.named_parameters())["weight"]
    assert isinstance(embedding.weight, torch.nn.Parameter)
    with active(model, NARROW):
        assert embedding.weight.shape == (60, 20)
        assert norm.normalized_shape == (20,)
        assert model.state_dict()["bert.embeddings.word_embeddings.weight"].shape == (60, 32)
        assert parameters_to_vector(model.parameters()).numel() == model.num_parameters()
    assert norm.normalized_shape == (32,)


def test_weights_outside_of_the_slice_get_no_gradient(universal):
    if get_elastic(universal).dims.hidden_fixed:
        pytest.skip("its width is fixed")
    stream = stream_of(universal)
    with active(universal, Subnet((64,) * 3, (4,) * 3, hidden=20)):
        universal(**sample_inputs(universal.config, batch=2))[0].square().mean().backward()
    touched = 0
    for name, parameter in universal.named_parameters():
        if parameter.grad is None:
            continue
        whole = parameter.grad.abs().sum()
        assert torch.allclose(stream.take(name, parameter.grad, 20).abs().sum(), whole)
        touched += bool(stream.dims(name)) and bool(whole)
    assert touched > 20


def test_a_model_can_be_trained_at_several_widths():
    model = make_elastic(tiny_vit(), SearchSpace(hidden=[0.5, 1.0])).train()
    inputs = sample_inputs(model.config, batch=8)
    labels = torch.arange(8) % 5
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        for hidden in (None, 16):
            with active(model, Subnet((64,) * 3, (4,) * 3, hidden)):
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert max(losses[-2:]) < 0.5 * min(losses[:2])


def test_threads_run_slices_of_their_own():
    model = make_elastic(tiny_llama(), SearchSpace())
    inputs = sample_inputs(model.config, batch=2)
    widths = (None, 8, 20, 31)
    expected = {w: outputs(extract(model, Subnet((64,) * 3, (4,) * 3, w)), inputs) for w in widths}
    barrier, found = threading.Barrier(len(widths)), {}

    def run(width):
        with active(model, Subnet((64,) * 3, (4,) * 3, width)):
            for _ in range(5):
                barrier.wait()
                found[width] = outputs(model, inputs)

    threads = [threading.Thread(target=run, args=(width,)) for width in widths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(largest_difference(expected[w], found[w]) <= 1e-5 for w in widths)


def test_a_copy_follows_its_own_subnet():
    model = make_elastic(tiny_llama(), SearchSpace())
    copied, inputs = copy.deepcopy(model), sample_inputs(model.config, batch=2)
    full = outputs(model, inputs)
    with active(copied, NARROW):
        assert torch.equal(outputs(model, inputs), full)
        assert not torch.equal(outputs(copied, inputs), full)


def test_parameters_can_be_replaced_by_tensors_and_back():
    """As FSDP and functional calls do."""
    model = make_elastic(tiny_vit(), SearchSpace())
    inputs = sample_inputs(model.config, batch=2)
    norm = model.get_submodule("vit.layernorm")
    with active(model, NARROW):
        expected = outputs(model, inputs)
        doubled = {name: 2 * p for name, p in model.named_parameters()}
        assert not torch.equal(torch.func.functional_call(model, doubled, kwargs=inputs)[0], expected)
        whole = norm._parameters.pop("weight")
        object.__setattr__(norm, "weight", whole.detach())
        assert norm.weight.shape == (20,)
        assert torch.equal(outputs(model, inputs), expected)
        del norm.weight
        norm.register_parameter("weight", whole)
        assert torch.equal(outputs(model, inputs), expected)


def test_the_ffn_of_a_ratio_is_stock_where_it_is_a_whole_multiple():
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=8,
                          patch_size=2, num_channels=1)  # fmt: skip
    model = make_elastic(Dinov2ForImageClassification(config).eval(), SearchSpace())
    family: Family = get_family(config)
    for ffn, hidden, ratio in ((64, 16, 4), (16, 16, 1), (64, 24, None)):
        subnet = Subnet((ffn, ffn), (4, 4), hidden)
        small = extract(model, subnet)
        verify_extraction(model, subnet, small, sample_inputs(config, batch=2))
        assert (type(small) is type(model)) == (ratio is not None)
        if ratio is not None:
            assert small.config.mlp_ratio == ratio
            assert family.dims(small.config).hidden == hidden
