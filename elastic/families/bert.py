"""BERT (arXiv 1810.04805) and models of the same layers: post-norm, residuals added inside the output modules."""

from dataclasses import replace

from elastic.families.family import Family, Projection, Skip

BERT = Family(
    model_type="bert",
    layers="encoder.layer",
    head_inputs=(
        Projection("attention.self.query"),
        Projection("attention.self.key"),
        Projection("attention.self.value"),
    ),
    head_output="attention.output.dense",
    ffn_inputs=("intermediate.dense",),
    ffn_output="output.dense",
    skip_attention={"attention": Skip.ATTENTION_INPUT},
    skip_mlp={"intermediate": Skip.INPUT, "output": Skip.RESIDUAL},
    config_has_head_dim=False,
    heads_divide_hidden=True,
    unsupported={"is_decoder": "BERT as a decoder", "add_cross_attention": "cross-attention"},
)

ROBERTA, XLM_ROBERTA, CAMEMBERT = (
    replace(BERT, model_type=model_type) for model_type in ("roberta", "xlm-roberta", "camembert")
)
# Without embeddings of another size, they are the stream, and no projection follows them.
ELECTRA = replace(BERT, model_type="electra", hidden_too=("embedding_size",))
