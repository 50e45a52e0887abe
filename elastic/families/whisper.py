"""Whisper's audio encoder (arXiv 2212.04356), as in `WhisperForAudioClassification`: pre-norm, FFN without a module."""

from elastic.families.family import Family, HeadSize, Projection, Skip

WHISPER = Family(
    model_type="whisper",
    layers="encoder.layers",
    head_inputs=(
        Projection("self_attn.q_proj"),
        Projection("self_attn.k_proj"),
        Projection("self_attn.v_proj"),
    ),
    head_output="self_attn.out_proj",
    ffn_inputs=("fc1",),
    ffn_output="fc2",
    skip_attention={"self_attn_layer_norm": Skip.INPUT, "self_attn": Skip.ATTENTION_ZERO},
    skip_mlp={"final_layer_norm": Skip.INPUT, "fc1": Skip.ZERO, "fc2": Skip.ZERO},
    config_has_head_dim=False,
    hidden_fixed="transformers makes Whisper's positions anew when it loads a model, and cannot for every hidden size",
    ffn_field="encoder_ffn_dim",
    heads_field="encoder_attention_heads",
    layers_field="encoder_layers",
    head_sizes={"self_attn.num_heads": HeadSize.HEADS},
    model_classes=("WhisperForAudioClassification",),
    unsupported={
        "encoder_layerdrop": "dropping layers at random",
        "use_weighted_layer_sum": "a weighted sum of all layers",
    },
)
