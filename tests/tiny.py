"""Tiny real models of every family: random weights, real architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import transformers
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
SPACE_OF_ALL_HEADS = SearchSpace(ffn=[0.25, 0.5, 1.0], layers=[1, 2, 3], attention=[2, 3], mlp=[2, 3])

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGE = {"image_size": 8, "patch_size": 2, "num_channels": 1}
_TEXT = {**_SIZES, "vocab_size": 60, "max_position_embeddings": 40}
_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_DECODER = {**_SIZES, "vocab_size": 60, "max_position_embeddings": 64, "num_key_value_heads": 2, **_TOKENS}


def tiny_vit() -> PreTrainedModel:
    return _randomised(ViTForImageClassification, ViTConfig(**_SIZES, **_IMAGE, num_labels=5))


def tiny_bert() -> PreTrainedModel:
    return _randomised(BertForSequenceClassification, BertConfig(**_TEXT, num_labels=3))


def tiny_bert_masked_lm() -> PreTrainedModel:
    return _randomised(BertForMaskedLM, BertConfig(**_TEXT))


def tiny_bert_base() -> PreTrainedModel:
    """No head: the layers are not behind the base model's prefix."""
    return _randomised(BertModel, BertConfig(**_TEXT))


def tiny_llama() -> PreTrainedModel:
    return _randomised(LlamaForCausalLM, LlamaConfig(**_DECODER))


def _tiny(model_class: str, config_class: str, **config: object) -> Callable[[], PreTrainedModel]:
    return lambda: _randomised(getattr(transformers, model_class), getattr(transformers, config_class)(**config))


def _tiny_siglip() -> PreTrainedModel:
    vision, text = {**_SIZES, **_IMAGE}, {**_SIZES, **_TOKENS}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text, num_labels=5)
    return _randomised(transformers.SiglipForImageClassification, config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": tiny_vit,
    "deit": _tiny("DeiTForImageClassification", "DeiTConfig", **_SIZES, **_IMAGE, num_labels=5),
    "dinov2": _tiny("Dinov2ForImageClassification", "Dinov2Config", **_SIZES, **_IMAGE, mlp_ratio=2, num_labels=5),
    "siglip_vision": _tiny("SiglipVisionModel", "SiglipVisionConfig", **_SIZES, **_IMAGE),
    "siglip": _tiny_siglip,
    "ast": _tiny(
        "ASTForAudioClassification",
        "ASTConfig",
        **_SIZES,
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=12,
        num_mel_bins=8,
        num_labels=5,
    ),
    "whisper": _tiny(
        "WhisperForAudioClassification",
        "WhisperConfig",
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=1,
        num_mel_bins=8,
        max_source_positions=10,
        vocab_size=60,
        classifier_proj_size=16,
        decoder_start_token_id=0,
        **_TOKENS,
        num_labels=5,
    ),
    "bert": tiny_bert,
    "bert_base": tiny_bert_base,
    "bert_masked_lm": tiny_bert_masked_lm,
    "roberta": _tiny("RobertaForSequenceClassification", "RobertaConfig", **_TEXT, num_labels=3),
    "xlm_roberta": _tiny("XLMRobertaModel", "XLMRobertaConfig", **_TEXT),
    "camembert": _tiny("CamembertForTokenClassification", "CamembertConfig", **_TEXT, num_labels=3),
    "electra": _tiny("ElectraForSequenceClassification", "ElectraConfig", **_TEXT, embedding_size=24, num_labels=3),
    "distilbert": _tiny(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=64,
        vocab_size=60,
        max_position_embeddings=40,
        num_labels=3,
    ),
    "mpnet": _tiny("MPNetModel", "MPNetConfig", **_TEXT),
    "modernbert": _tiny("ModernBertForMaskedLM", "ModernBertConfig", **_TEXT, **_TOKENS, cls_token_id=1,
                        sep_token_id=2, local_attention=8),
    "gpt2": _tiny("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=3, n_head=4, n_inner=64, n_positions=64,
                  vocab_size=60, **_TOKENS),
    "llama": tiny_llama,
    "mistral": _tiny("MistralForCausalLM", "MistralConfig", **_DECODER, sliding_window=5),
    "qwen2": _tiny("Qwen2ForCausalLM", "Qwen2Config", **_DECODER, use_sliding_window=True, sliding_window=5,
                   max_window_layers=1),
    "qwen3": _tiny("Qwen3ForCausalLM", "Qwen3Config", **_DECODER, head_dim=16),
    "smollm3": _tiny("SmolLM3ForCausalLM", "SmolLM3Config", **_DECODER, no_rope_layer_interval=2),
    "gemma2": _tiny("Gemma2ForCausalLM", "Gemma2Config", **_DECODER, head_dim=16, sliding_window=5),
    "gemma3": _tiny("Gemma3ForCausalLM", "Gemma3TextConfig", **_DECODER, head_dim=16, sliding_window=5,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "phi3": _tiny("Phi3ForCausalLM", "Phi3Config", **_DECODER, original_max_position_embeddings=64),
}  # fmt: skip

REPRESENTATIVES = ("bert", "gpt2", "llama", "modernbert", "phi3", "vit", "whisper")
"""One of each structure: norms after and before sub-layers, Conv1D, grouped and fused projections, a first layer that
differs from the others; texts, images and sounds."""


def sweep(fast: Iterable[str] = REPRESENTATIVES, of: Iterable[str] = MODELS) -> list[object]:
    """Return models to test with: all of them, and without ``-m slow`` some that stand for the others."""
    fast = set(fast)
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in sorted(of)]


DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "phi3")


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
