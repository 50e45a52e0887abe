"""Llama (arXiv 2302.13971) and models of the same layers: pre-norm decoder, gated FFN, grouped-query attention.

Mistral (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388) with normalised queries and keys, SmolLM3.
"""

from dataclasses import replace

from elastic.families.family import Family, Projection, Skip

LLAMA = Family(
    model_type="llama",
    layers="layers",
    head_inputs=(
        Projection("self_attn.q_proj"),
        Projection("self_attn.k_proj", shared_by_group=True),
        Projection("self_attn.v_proj", shared_by_group=True),
    ),
    head_output="self_attn.o_proj",
    ffn_inputs=("mlp.gate_proj", "mlp.up_proj"),
    ffn_output="mlp.down_proj",
    skip_attention={"input_layernorm": Skip.INPUT, "self_attn": Skip.ATTENTION_ZERO},
    skip_mlp={"post_attention_layernorm": Skip.INPUT, "mlp": Skip.ZERO},
    config_has_head_dim=True,
    heads_divide_hidden=True,
    kv_heads_field="num_key_value_heads",
    generates=True,
)

MISTRAL = replace(LLAMA, model_type="mistral", heads_divide_hidden=False)
QWEN2 = replace(LLAMA, model_type="qwen2", heads_divide_hidden=False)
QWEN3 = replace(LLAMA, model_type="qwen3", heads_divide_hidden=False)
SMOLLM3 = replace(LLAMA, model_type="smollm3", heads_divide_hidden=False, layer_lists=("layer_types", "no_rope_layers"))
