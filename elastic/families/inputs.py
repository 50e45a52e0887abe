"""What models take: names and shapes of the inputs of any supported architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that are whole numbers; all others are numbers with a point."""

POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types whose first position comes after the padding index, so that some rows of the table stay unused."""


def dense_shape(config: PreTrainedConfig) -> tuple[str, tuple[int, ...]] | None:
    """Return name and shape (without the batch) of a model's image or spectrogram; None if it takes text."""
    config = getattr(config, "vision_config", config)
    if hasattr(config, "image_size") and hasattr(config, "num_channels"):
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return "pixel_values", (config.num_channels, height, width)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        # Whisper halves the number of frames by a convolution of stride 2.
        return "input_features", (config.num_mel_bins, 2 * config.max_source_positions)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return "input_values", (config.max_length, config.num_mel_bins)
    return None


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Return how long a text may be; None if the configuration does not say."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in POSITIONS_AFTER_PADDING:
        # The padding index of MPNet is always 1, whatever its configuration says.
        padding = 1 if config.model_type == "mpnet" else (config.pad_token_id or 0)
        positions -= padding + 1
    return positions


def input_shapes(config: PreTrainedConfig, *, batch: int = 1, tokens: int = 128) -> dict[str, tuple[int, ...]]:
    """Return the main input of a model with its shape; texts are cut to what the model takes."""
    if dense := dense_shape(config):
        name, shape = dense
        return {name: (batch, *shape)}
    return {"input_ids": (batch, min(tokens, max_tokens(config) or tokens))}
