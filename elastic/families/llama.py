"""Llama (arXiv 2302.13971): pre-norm decoder, gated FFN, grouped-query attention."""

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
)
