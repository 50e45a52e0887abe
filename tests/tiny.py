"""Tiny real models of every family: random weights, real architectures."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from elastic.space import SearchSpace

SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[1, 2, 3], attention=[2, 3], mlp=[2, 3])

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def tiny_vit() -> PreTrainedModel:
    config = ViTConfig(**_SIZES, image_size=8, patch_size=2, num_channels=1, num_labels=5)
    return _randomised(ViTForImageClassification, config)


def tiny_bert() -> PreTrainedModel:
    config = BertConfig(**_SIZES, vocab_size=60, max_position_embeddings=40, num_labels=3)
    return _randomised(BertForSequenceClassification, config)


def tiny_bert_masked_lm() -> PreTrainedModel:
    return _randomised(BertForMaskedLM, BertConfig(**_SIZES, vocab_size=60, max_position_embeddings=40))


def tiny_bert_base() -> PreTrainedModel:
    """No head: the layers are not behind the base model's prefix."""
    return _randomised(BertModel, BertConfig(**_SIZES, vocab_size=60, max_position_embeddings=40))


def tiny_llama() -> PreTrainedModel:
    config = LlamaConfig(
        **_SIZES,
        num_key_value_heads=2,
        vocab_size=60,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return _randomised(LlamaForCausalLM, config)


MODELS = {
    "vit": tiny_vit,
    "bert": tiny_bert,
    "bert_base": tiny_bert_base,
    "bert_masked_lm": tiny_bert_masked_lm,
    "llama": tiny_llama,
}


def _randomised(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """Norms start at one and biases at zero, which would hide a slice taken at the wrong place."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()
