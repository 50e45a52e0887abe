"""SigLIP's image encoder (arXiv 2303.15343): pre-norm, with a pooling head that has the sizes of the layers."""

from dataclasses import replace

from elastic.families.family import Family, Projection, Skip

SIGLIP_VISION = Family(
    model_type="siglip_vision_model",
    layers="encoder.layers",
    head_inputs=(
        Projection("self_attn.q_proj"),
        Projection("self_attn.k_proj"),
        Projection("self_attn.v_proj"),
    ),
    head_output="self_attn.out_proj",
    ffn_inputs=("mlp.fc1",),
    ffn_output="mlp.fc2",
    skip_attention={"layer_norm1": Skip.INPUT, "self_attn": Skip.ATTENTION_ZERO},
    skip_mlp={"layer_norm2": Skip.INPUT, "mlp": Skip.ZERO},
    config_has_head_dim=False,
    config_has_ffn=False,
    hidden_fixed="SigLIP's pooling head has attention of its own over the whole stream",
    model_classes=("SiglipVisionModel",),
)

SIGLIP = replace(
    SIGLIP_VISION,
    model_type="siglip",
    layers="vision_model.encoder.layers",
    config_part="vision_config",
    model_classes=("SiglipForImageClassification",),
)
