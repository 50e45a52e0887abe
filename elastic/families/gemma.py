"""Gemma 2 (arXiv 2408.00118) and 3 (2503.19786): Llama's projections, with norms before and after each sub-layer."""

from dataclasses import replace

from elastic.families.family import Skip
from elastic.families.llama import LLAMA

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    hidden_fixed="the embeddings of Gemma are scaled by the root of the hidden size",
    scales_before_adding=True,
    skip_attention={
        "input_layernorm": Skip.INPUT,
        "self_attn": Skip.ATTENTION_ZERO,
        "post_attention_layernorm": Skip.INPUT,
    },
    skip_mlp={"pre_feedforward_layernorm": Skip.INPUT, "mlp": Skip.ZERO, "post_feedforward_layernorm": Skip.INPUT},
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text")
