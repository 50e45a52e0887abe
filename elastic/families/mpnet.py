"""MPNet (arXiv 2004.09297): BERT's layers, with one relative position bias for the heads of all layers."""

from elastic.families.family import Family, Projection, Skip

MPNET = Family(
    model_type="mpnet",
    layers="encoder.layer",
    head_inputs=(
        Projection("attention.attn.q"),
        Projection("attention.attn.k"),
        Projection("attention.attn.v"),
    ),
    head_output="attention.attn.o",
    ffn_inputs=("intermediate.dense",),
    ffn_output="output.dense",
    skip_attention={"attention": Skip.ATTENTION_INPUT},
    skip_mlp={"intermediate": Skip.INPUT, "output": Skip.RESIDUAL},
    config_has_head_dim=False,
    heads_together="all layers share one relative position bias with one value for each head",
    layer_returns_tuple=True,
)
