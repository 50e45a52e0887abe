"""What goes into an exported graph and what comes out, by the kind of model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from elastic.errors import CheckpointError
from elastic.families import dense_shape, max_tokens

from .decoder import DecoderInputs, cached_layers
from .embedder import OUTPUT_NAME as EMBEDDING_NAME
from .embedder import Embedder, Exportable, body_of
from .profiles import ProfiledInputs
from .runtime.manifest import TensorSpec

Array = np.ndarray[Any, Any]

OUTPUT_NAMES = ("logits", "start_logits", "end_logits", EMBEDDING_NAME, "last_hidden_state", "pooler_output")
"""The outputs that a graph may have. A model with logits returns these alone."""


@dataclass(frozen=True)
class DenseInputs:
    """One image or one spectrogram of a size that the model fixes; the batch is free."""

    name: str
    shape: tuple[int, ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""
        return (TensorSpec(self.name, "float32", ("batch", *self.shape)),)

    @property
    def max_sizes(self) -> dict[str, int]:
        """Upper limits of the free dimensions."""
        return {}

    def parity_sizes(self) -> list[dict[str, int]]:
        """Return the sizes at which graph and model are compared."""
        return [{"batch": batch} for batch in (1, 3, 4)]

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
        """Draw inputs of these sizes."""
        shape = (sizes["batch"], *self.shape)
        return {self.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        return dict(tensors)

    def further_outputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return what the forward pass left in its arguments."""
        return {}


@dataclass(frozen=True)
class TextInputs:
    """``input_ids`` and ``attention_mask``; batch and sequence are free. Token types are not given: zeros."""

    vocab_size: int
    pad_id: int
    max_length: int | None
    has_cache: bool
    """Whether the model would fill a key-value cache if it was not told otherwise."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""
        return tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))

    @property
    def max_sizes(self) -> dict[str, int]:
        """Upper limits of the free dimensions."""
        return {} if self.max_length is None else {"sequence": self.max_length}

    def parity_sizes(self) -> list[dict[str, int]]:
        """Return the sizes at which graph and model are compared."""
        limit = self.max_length or 128
        wanted = ((1, 7), (3, 33), (4, 128))
        return [{"batch": batch, "sequence": min(length, limit)} for batch, length in wanted]

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
        """Draw inputs of these sizes; every row but the first is padded, each to another length."""
        batch, sequence = sizes["batch"], sizes["sequence"]
        ids = np.random.default_rng(seed).integers(0, self.vocab_size, (batch, sequence), dtype=np.int64)
        lengths = sequence - np.arange(batch) * sequence // (batch + 1)
        mask = (np.arange(sequence) < lengths[:, None]).astype(np.int64)
        return {"input_ids": np.where(mask == 1, ids, self.pad_id), "attention_mask": mask}

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        return {**tensors, "use_cache": False} if self.has_cache else dict(tensors)

    def further_outputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return what the forward pass left in its arguments."""
        return {}


ModelInputs = DenseInputs | TextInputs | DecoderInputs | ProfiledInputs


def cast_inputs(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return inputs as the types that a graph takes."""
    return {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in specs}


def describe_inputs(model: Exportable) -> DenseInputs | TextInputs | DecoderInputs:
    """Return the inputs that a model is exported with.

    Raises:
        CheckpointError: if the model takes neither an image, a spectrogram nor a text, or has both an encoder and
            a decoder.
    """
    body = body_of(model)
    config, main_input = body.config, body.main_input_name
    # Whisper's configuration is that of an encoder and a decoder, and its audio classifier has the first alone.
    dense = dense_shape(config)
    if dense is not None and dense[0] in inspect.signature(body.forward).parameters:
        return DenseInputs(*dense)
    if main_input == "input_ids" and hasattr(config, "vocab_size") and not config.is_encoder_decoder:
        parameters = inspect.signature(body.forward).parameters
        limits = [max_tokens(config), model.max_length if isinstance(model, Embedder) else None]
        pad_id = getattr(config, "pad_token_id", None) or 0
        max_length = min((limit for limit in limits if limit is not None), default=None)
        if layers := cached_layers(body):
            return DecoderInputs(config.vocab_size, pad_id, max_length, layers)
        return TextInputs(
            vocab_size=config.vocab_size,
            pad_id=pad_id,
            max_length=max_length,
            has_cache="use_cache" in parameters and getattr(config, "use_cache", False),
        )
    takes = f"'{main_input}'" + (" for an encoder and a decoder" if config.is_encoder_decoder else "")
    raise CheckpointError(
        f"{type(body).__name__} cannot be exported: graphs take one image, one spectrogram or one text ('input_ids'), "
        f"and this model of type '{config.model_type}' takes {takes}."
    )


def forward_outputs(
    model: Exportable, inputs: ModelInputs, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Run the model without gradients and return the outputs that a graph has.

    Raises:
        CheckpointError: if the model returns none of them.
    """
    arguments = inputs.arguments(tensors)
    with torch.no_grad():
        returned = model(**arguments, return_dict=True)
    found = {name: returned[name] for name in OUTPUT_NAMES if returned.get(name) is not None}
    if logits := {name: tensor for name, tensor in found.items() if name.endswith("logits")}:
        found = logits
    if not found:
        raise CheckpointError(
            f"{type(model).__name__} cannot be exported: it returns {', '.join(returned)}, and graphs return "
            f"{' or '.join(OUTPUT_NAMES[:2])}."
        )
    return {**found, **inputs.further_outputs(arguments)}
