"""DistilBERT (arXiv 1910.01108): BERT's layers with the residuals added outside of the modules, before the norms."""

from elastic.families.family import Family, Projection, Skip

DISTILBERT = Family(
    model_type="distilbert",
    layers="transformer.layer",
    head_inputs=(
        Projection("attention.q_lin"),
        Projection("attention.k_lin"),
        Projection("attention.v_lin"),
    ),
    head_output="attention.out_lin",
    ffn_inputs=("ffn.lin1",),
    ffn_output="ffn.lin2",
    skip_attention={"attention": Skip.ATTENTION_ZERO, "sa_layer_norm": Skip.INPUT},
    skip_mlp={"ffn": Skip.ZERO, "output_layer_norm": Skip.INPUT},
    config_has_head_dim=False,
    ffn_field="hidden_dim",
    heads_field="n_heads",
    layers_field="n_layers",
)
