"""Phi-3 (arXiv 2404.14219): Llama with fused projections."""

from dataclasses import replace

from elastic.families.family import HeadSize, Projection
from elastic.families.llama import LLAMA

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    head_inputs=(
        Projection("self_attn.qkv_proj"),
        Projection("self_attn.qkv_proj", shared_by_group=True),
        Projection("self_attn.qkv_proj", shared_by_group=True),
    ),
    ffn_inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"),
    heads_divide_hidden=False,
    head_sizes={
        "self_attn.num_key_value_heads": HeadSize.KV_HEADS,
        "self_attn.config.num_attention_heads": HeadSize.HEADS,
    },
)
