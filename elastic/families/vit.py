"""ViT (arXiv 2010.11929) and models of the same layers: pre-norm encoders over patches.

DeiT (2012.12877), and the Audio Spectrogram Transformer (2104.01778).
"""

from dataclasses import replace

from elastic.families.family import Family, Projection, Skip

VIT = Family(
    model_type="vit",
    layers="layers",
    head_inputs=(
        Projection("attention.q_proj"),
        Projection("attention.k_proj"),
        Projection("attention.v_proj"),
    ),
    head_output="attention.o_proj",
    ffn_inputs=("mlp.fc1",),
    ffn_output="mlp.fc2",
    skip_attention={"layernorm_before": Skip.INPUT, "attention": Skip.ATTENTION_ZERO},
    skip_mlp={"layernorm_after": Skip.INPUT, "mlp": Skip.ZERO},
    config_has_head_dim=True,
)

DEIT = replace(VIT, model_type="deit")
AUDIO_SPECTROGRAM_TRANSFORMER = replace(VIT, model_type="audio-spectrogram-transformer")
