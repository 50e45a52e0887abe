"""GPT-2: pre-norm decoder, fused query, key and value in a transposed Linear."""

from elastic.families.family import Family, HeadSize, Projection, Skip

GPT2 = Family(
    model_type="gpt2",
    layers="h",
    head_inputs=(Projection("attn.c_attn"), Projection("attn.c_attn"), Projection("attn.c_attn")),
    head_output="attn.c_proj",
    ffn_inputs=("mlp.c_fc",),
    ffn_output="mlp.c_proj",
    skip_attention={"ln_1": Skip.INPUT, "attn": Skip.ATTENTION_ZERO},
    skip_mlp={"ln_2": Skip.INPUT, "mlp": Skip.ZERO},
    config_has_head_dim=False,
    ffn_field="n_inner",
    heads_field="n_head",
    layers_field="n_layer",
    generates=True,
    head_sizes={"attn.split_size": HeadSize.WIDTH},
    unsupported={
        "add_cross_attention": "cross-attention",
        "scale_attn_by_inverse_layer_idx": "attention scaled by the number of its layer",
        "reorder_and_upcast_attn": "reordered attention",
    },
)
