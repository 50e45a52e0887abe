"""Families: what is declared exists in the stock models, and the rest is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    SiglipConfig,
    SiglipModel,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

from elastic.errors import FamilyError, SpaceError
from elastic.extraction import is_portable
from elastic.families import FAMILIES, get_family, num_inputs, num_outputs
from elastic.families.table import updated
from elastic.nested import get_elastic, make_elastic
from elastic.space import SearchSpace
from tests.conftest import make_tiny_elastic
from tests.tiny import DECODERS, MODELS, SPACE


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_declared_path_exists(name):
    model = MODELS[name]()
    family = get_family(model.config)
    _, layers = family.find_layers(model)
    dims = family.dims(model.config)
    assert len(layers) == dims.num_layers
    for path in (*family.skip_attention, *family.skip_mlp):
        layers[0].get_submodule(path)
    blocks = {**family.ffn_blocks(model.config), **family.head_blocks(model.config)}
    for path, parts in blocks.items():
        rows = [row for part in parts for row in range(part.start, part.start + part.num_units * part.size)]
        assert rows == list(range(num_outputs(layers[0].get_submodule(path))))
    assert num_inputs(layers[0].get_submodule(family.ffn_output)) == dims.ffn
    assert num_inputs(layers[0].get_submodule(family.head_output)) == dims.heads * family.head_dim(model.config)


def test_every_family_has_a_tiny_model():
    assert {build().config.model_type for build in MODELS.values()} == set(FAMILIES)


def test_the_decoders_that_are_tested_are_those_that_claim_to_generate():
    tested = {MODELS[name]().config.model_type for name in DECODERS}
    assert tested == {family.model_type for family in FAMILIES.values() if family.generates}


def test_the_readme_holds_the_table_of_the_families():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert readme == updated(readme), "run python -m elastic.families.table README.md"


def test_the_table_says_what_stock_configurations_hold():
    """Of the tiny models' uniform subnets, those load stock that the row's words allow."""
    for name, build in MODELS.items():
        model = make_tiny_elastic(build())
        elastic = get_elastic(model)
        family = elastic.family
        uniform = elastic.resolved.uniform_subnets()
        portable = [s for s in uniform if s.hidden is None and is_portable(family, model.config, s)]
        kept = [(s.ffn[s.kept_layers[0]], s.heads[s.kept_layers[0]]) for s in portable]
        assert {heads for _, heads in kept} == ({2, 4} if family.config_has_head_dim else {4}), name
        widths = {16, 32, 64} if family.config_has_ffn and not family.ffn_is_ratio else {64}
        assert {ffn for ffn, _ in kept} == (widths | {32} if family.ffn_is_ratio else widths), name
        if family.hidden_fixed:
            continue
        narrow = [s for s in uniform if s.hidden == 16 and is_portable(family, model.config, s)]
        heads = {s.heads[s.kept_layers[0]] for s in narrow}
        assert heads == ({2, 4} if family.config_has_head_dim else set() if family.heads_together else {2}), name


def test_sub_layers_hold_all_weights_that_they_should():
    for name, build in MODELS.items():
        model = build()
        family = get_family(model.config)
        layer = family.find_layers(model)[1][0]
        declared = [*family.skip_attention, *family.skip_mlp]
        inside = sum(p.numel() for path in declared for p in layer.get_submodule(path).parameters())
        assert inside == sum(p.numel() for p in layer.parameters()), name


def test_an_unknown_architecture_lists_the_supported_ones():
    with pytest.raises(FamilyError, match="models of type 't5' are not supported; supported are audio-spectrogram"):
        get_family(T5Config())


def test_bert_as_a_decoder_is_refused():
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, is_decoder=True
    )
    with pytest.raises(FamilyError, match="BERT as a decoder"):
        make_elastic(BertModel(config), SearchSpace())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(add_cross_attention=True), "cross-attention"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "scaled by the number of its layer"),
        (Dinov2Config(use_swiglu_ffn=True), "the SwiGLU variant of the FFN"),
        (WhisperConfig(encoder_layerdrop=0.1), "dropping layers at random"),
        (WhisperConfig(use_weighted_layer_sum=True), "a weighted sum of all layers"),
    ],
)
def test_unsupported_parts_are_refused(config, message):
    with pytest.raises(FamilyError, match=message):
        get_family(config)


def test_quantized_models_are_refused():
    config = LlamaConfig()
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(FamilyError, match="quantized models cannot be made elastic.*load the full-precision"):
        get_family(config)


def test_other_classes_of_a_type_are_refused():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = SiglipConfig(text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 16})
    with pytest.raises(FamilyError, match="SiglipModel is not supported; of models of type 'siglip', SiglipForImage"):
        make_elastic(SiglipModel(config), SearchSpace())


def test_heads_that_leave_together_say_why():
    with pytest.raises(SpaceError, match="heads=0.5 is 2 query heads, which is not possible, because all layers share"):
        make_elastic(MODELS["mpnet"](), SPACE)


def test_layers_elsewhere_are_refused():
    class Wrapped(torch.nn.Module):
        base_model_prefix = "inner"
        config = ViTConfig()

    with pytest.raises(FamilyError, match="has no layers at 'layers'"):
        FAMILIES["vit"].find_layers(Wrapped())


def test_grouped_query_attention_is_known():
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    assert get_family(config).dims(config).heads_per_group == 4
