"""Families: what is declared exists in the stock models, and the rest is refused in one sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, LlamaConfig, ViTConfig

from elastic.errors import FamilyError
from elastic.families import FAMILIES, get_family
from elastic.nested import make_elastic
from elastic.space import SearchSpace
from tests.tiny import MODELS


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_declared_path_exists(name):
    model = MODELS[name]()
    family = get_family(model.config)
    _, layers = family.find_layers(model)
    dims = family.dims(model.config)
    assert len(layers) == dims.num_layers
    for path in (*family.skip_attention, *family.skip_mlp):
        layers[0].get_submodule(path)
    for path in family.ffn_inputs:
        assert layers[0].get_submodule(path).out_features == dims.ffn
    for projection in family.head_inputs:
        heads = dims.kv_heads if projection.shared_by_group else dims.heads
        assert layers[0].get_submodule(projection.path).out_features == heads * family.head_dim(model.config)


def test_sub_layers_hold_all_weights_that_they_should():
    for name, build in MODELS.items():
        model = build()
        family = get_family(model.config)
        layer = family.find_layers(model)[1][0]
        declared = [*family.skip_attention, *family.skip_mlp]
        inside = sum(p.numel() for path in declared for p in layer.get_submodule(path).parameters())
        assert inside == sum(p.numel() for p in layer.parameters()), name


def test_an_unknown_architecture_lists_the_supported_ones():
    with pytest.raises(FamilyError, match="models of type 'gpt2' are not supported; supported are bert, llama, vit"):
        get_family(GPT2Config())


def test_bert_as_a_decoder_is_refused():
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, is_decoder=True
    )
    with pytest.raises(FamilyError, match="BERT as a decoder"):
        make_elastic(BertModel(config), SearchSpace())


def test_layers_elsewhere_are_refused():
    class Wrapped(torch.nn.Module):
        base_model_prefix = "inner"
        config = ViTConfig()

    with pytest.raises(FamilyError, match="has no layers at 'layers'"):
        FAMILIES["vit"].find_layers(Wrapped())


def test_grouped_query_attention_is_known():
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    assert get_family(config).dims(config).heads_per_group == 4
