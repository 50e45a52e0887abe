"""The architectures that Elastic knows: one short declarative file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic.errors import FamilyError
from elastic.families.bert import BERT, CAMEMBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from elastic.families.dinov2 import DINOV2
from elastic.families.distilbert import DISTILBERT
from elastic.families.family import Block, Family, HeadSize, Projection, Skip
from elastic.families.gemma import GEMMA2, GEMMA3
from elastic.families.gpt2 import GPT2
from elastic.families.inputs import TOKEN_INPUTS, dense_shape, input_shapes, max_tokens
from elastic.families.linear import LINEAR_CLASSES, num_inputs, num_outputs, output_dim
from elastic.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from elastic.families.modernbert import MODERNBERT
from elastic.families.mpnet import MPNET
from elastic.families.phi3 import PHI3
from elastic.families.siglip import SIGLIP, SIGLIP_VISION
from elastic.families.vit import AUDIO_SPECTROGRAM_TRANSFORMER, DEIT, VIT
from elastic.families.whisper import WHISPER

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = {
    family.model_type: family
    for family in (
        *(VIT, DEIT, DINOV2, SIGLIP_VISION, SIGLIP),
        *(AUDIO_SPECTROGRAM_TRANSFORMER, WHISPER),
        *(BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA, DISTILBERT, MPNET, MODERNBERT),
        *(GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GEMMA2, GEMMA3, PHI3),
    )
}

__all__ = [
    "FAMILIES",
    "Block",
    "Family",
    "HeadSize",
    "Projection",
    "Skip",
    "get_family",
    "LINEAR_CLASSES",
    "num_inputs",
    "num_outputs",
    "output_dim",
    "TOKEN_INPUTS",
    "dense_shape",
    "input_shapes",
    "max_tokens",
]


def get_family(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration.

    Raises:
        FamilyError: if the architecture is unknown (lists the known ones), quantized, or uses a part that is not
            supported.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise FamilyError(
            f"models of type '{config.model_type}' are not supported; supported are {', '.join(sorted(FAMILIES))}."
        )
    if getattr(config, "quantization_config", None):
        raise FamilyError(
            "quantized models cannot be made elastic, because their weights have no prefixes; load the full-precision "
            "checkpoint, and quantize what you extract."
        )
    for flag, meaning in (family.unsupported or {}).items():
        if value := getattr(family.body_config(config), flag, False):
            raise FamilyError(f"{meaning} ({flag}={value}) is not supported for models of type '{config.model_type}'.")
    return family
