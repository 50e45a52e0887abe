"""DINOv2 (arXiv 2304.07193): pre-norm image encoder, each sub-layer scaled before it is added."""

from dataclasses import replace

from elastic.families.family import Skip
from elastic.families.vit import VIT

DINOV2 = replace(
    VIT,
    model_type="dinov2",
    layers="encoder.layer",
    skip_attention={"norm1": Skip.INPUT, "attention": Skip.ATTENTION_ZERO, "layer_scale1": Skip.INPUT},
    skip_mlp={"norm2": Skip.INPUT, "mlp": Skip.ZERO, "layer_scale2": Skip.INPUT},
    scales_before_adding=True,
    ffn_field="mlp_ratio",
    ffn_is_ratio=True,
    derived_fields=("stage_names", "out_features", "out_indices"),
    unsupported={"use_swiglu_ffn": "the SwiGLU variant of the FFN"},
)
