"""ModernBERT (arXiv 2412.13663): pre-norm encoder, fused projections, gated FFN, local and global attention."""

from elastic.families.family import Family, Projection, Skip

MODERNBERT = Family(
    model_type="modernbert",
    layers="layers",
    head_inputs=(Projection("attn.Wqkv"), Projection("attn.Wqkv"), Projection("attn.Wqkv")),
    head_output="attn.Wo",
    ffn_inputs=("mlp.Wi", "mlp.Wi"),
    ffn_output="mlp.Wo",
    skip_attention={"attn_norm": Skip.INPUT, "attn": Skip.ATTENTION_ZERO},
    skip_mlp={"mlp_norm": Skip.INPUT, "mlp": Skip.ZERO},
    config_has_head_dim=False,
    # The embeddings are normalised already; when the first layer leaves, another one with a norm comes first.
    first_layer_lacks={"attn_norm": "mlp_norm"},
)
