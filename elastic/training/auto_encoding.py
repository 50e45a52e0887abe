"""Pre-training of embedders as masked auto-encoders: every size learns to carry the text, before any similarity.

SMAE of Starbucks (arXiv 2410.13230, section 3.2): each size restores masked tokens from its token states, and a shallow
decoder restores more of them from its embedding alone. Head and decoder are thrown away afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from elastic.errors import RecipeError
from elastic.nested import get_elastic
from elastic.training.objectives import Returned
from elastic.training.trainer import ElasticMixin

FILE_NAME = "auto_encoder.safetensors"
"""In checkpoints of an unfinished run."""
_MODULE = "elastic_auto_encoder"
_IGNORED = -100
_MASKED, _RANDOM = 0.8, 0.1
"""What becomes of a token that is to be restored, as in BERT: the mask, a random token, or what it was."""


@dataclass(frozen=True)
class AutoEncoding:
    """How embedders are pre-trained as masked auto-encoders."""

    mask_token: int
    special_tokens: tuple[int, ...]
    """Never masked: padding, ends, unknown."""
    mask_rate: float = 0.2
    """Share of the tokens that the encoder does not see."""
    decoder_mask_rate: float = 0.4
    """Share that the decoder does not see, those of the encoder among them."""
    decoder_layers: int = 1
    tied: bool = True
    """Whether the vocabulary is read out by the encoder's own word embeddings, or by a copy that learns for itself."""

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_rate <= self.decoder_mask_rate < 1.0:
            raise RecipeError(
                f"the encoder is masked at {self.mask_rate:g} and the decoder at {self.decoder_mask_rate:g}; the "
                "decoder must see less, and both something."
            )


@dataclass(frozen=True)
class Masked:
    """A batch with tokens taken out, ``(batch, tokens)`` each; targets are -100 where nothing is to be restored."""

    input_ids: torch.Tensor
    targets: torch.Tensor
    decoder_input_ids: torch.Tensor
    decoder_targets: torch.Tensor


def mask_tokens(
    settings: AutoEncoding, input_ids: torch.Tensor, attention_mask: torch.Tensor, vocabulary: int, seed: int
) -> Masked:
    """Mask a batch, depending on nothing but it and the seed.

    What the encoder has to restore, the decoder has to restore as well. At least one token of each text is taken.

    Args:
        settings: how much is masked.
        input_ids: ``(batch, tokens)``.
        attention_mask: ``(batch, tokens)``, 0 at padding.
        vocabulary: how many tokens there are to replace others.
        seed: of this batch.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = input_ids.cpu()
    draw = torch.rand(ids.shape, generator=generator)
    special = torch.isin(ids, torch.tensor(settings.special_tokens, dtype=ids.dtype))
    draw = draw.masked_fill(special | (attention_mask.cpu() == 0), 2.0)
    least = draw.min(dim=1, keepdim=True).values
    masked = []
    for rate in (settings.mask_rate, settings.decoder_mask_rate):
        taken = (draw <= least.clamp(min=rate)) & (draw < 1.0)
        kind = torch.rand(ids.shape, generator=generator)
        other = torch.randint(vocabulary, ids.shape, generator=generator, dtype=ids.dtype)
        seen = ids.where(~taken | (kind >= _MASKED), torch.full_like(ids, settings.mask_token))
        seen = seen.where(~taken | (kind < _MASKED) | (kind >= _MASKED + _RANDOM), other)
        masked += [seen.to(input_ids.device), ids.where(taken, torch.full_like(ids, _IGNORED)).to(input_ids.device)]
    return Masked(*masked)


class MaskedAutoEncoder(nn.Module):
    """The head and the decoder that all sizes of an embedder share."""

    def __init__(self, model: PreTrainedModel, settings: AutoEncoding) -> None:
        """Make them for a model, as wide as its word embeddings."""
        super().__init__()
        weight = _word_embeddings(model)
        hidden, (vocabulary, width) = get_elastic(model).dims.hidden, weight.shape
        self.from_tokens = _Transform(hidden, width)
        self.from_embedding = _Transform(hidden, width)
        limit = int(getattr(model.config, "max_position_embeddings", 512))
        self.positions = nn.Embedding(limit + 1, width)
        self.norm = nn.LayerNorm(width)
        heads = math.gcd(width, int(model.config.num_attention_heads))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
            for _ in range(settings.decoder_layers)
        )
        self.from_decoder = _Transform(width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.vocabulary = None if settings.tied else nn.Parameter(weight.detach().clone())
        nn.init.normal_(self.positions.weight, std=0.02)
        self.to(model.device)

    def forward(
        self, tokens: torch.Tensor, embeddings: torch.Tensor, masked: Masked, mask: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean of both losses, a scalar: cross-entropies in nats over the tokens that were taken out.

        Args:
            tokens: ``(batch, tokens, hidden)``, what a size returned for the masked input. As many dimensions of them
                as its embedding has are read.
            embeddings: ``(batch, width)``, its embeddings.
            masked: the batch.
            mask: ``(batch, tokens)``, 0 at padding.
            words: ``(vocabulary, width)``, the encoder's word embeddings.
        """
        kept = embeddings.shape[-1]
        from_tokens = self._loss(self.from_tokens, tokens[..., :kept], masked.targets, words)
        decoded = self._decoded(embeddings, masked.decoder_input_ids, mask, words)
        return 0.5 * (from_tokens + self._loss(self.from_decoder, decoded, masked.decoder_targets, words))

    def _decoded(
        self, embeddings: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """Return what the decoder makes of an embedding, put before the words that are left of the text."""
        # Of size 1 in each dimension, however many are left.
        carried = F.normalize(embeddings, dim=-1) * math.sqrt(embeddings.shape[-1])
        states = torch.cat([self.from_embedding(carried)[:, None], F.embedding(ids, words)], dim=1)
        states = self.norm(states + self.positions.weight[: states.shape[1]])
        padding = F.pad(mask == 0, (1, 0))
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        return states[:, 1:]

    def _loss(
        self, transform: nn.Module, states: torch.Tensor, targets: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        taken = targets != _IGNORED
        read_out = words if self.vocabulary is None else self.vocabulary
        logits = F.linear(transform(states[taken]), read_out, self.bias)
        # A sum, so that a batch without any word has no loss instead of none that is a number.
        return F.cross_entropy(logits.float(), targets[taken], reduction="sum") / taken.sum().clamp(min=1)


class _Transform(nn.Module):
    """From the first dimensions of a state to the width of words, as BERT's head does: linear, GELU, norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.dense.weight[:, : states.shape[-1]]
        transformed: torch.Tensor = self.norm(F.gelu(F.linear(states, weight, self.dense.bias)))
        return transformed


def _word_embeddings(model: PreTrainedModel) -> torch.Tensor:
    """Return the whole matrix, whatever hidden size is active."""
    return dict(model.get_input_embeddings().named_parameters())["weight"]


@contextmanager
def _attached(model: PreTrainedModel, module: nn.Module) -> Iterator[None]:
    """Let the module be trained as a part of the model, which is saved without it."""
    names = [f"{_MODULE}.{name}" for name, _ in module.named_parameters()]
    stock = model._keys_to_ignore_on_save
    setattr(model, _MODULE, module)
    model._keys_to_ignore_on_save = {*(stock or ()), *names}
    # It runs after the forward pass, where DistributedDataParallel does not look for parameters.
    model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
    try:
        yield
    finally:
        delattr(model, _MODULE)
        del model._ddp_params_and_buffers_to_ignore
        model._keys_to_ignore_on_save = stock


class AutoEncodingMixin(ElasticMixin):
    """Trains every size of an embedder to restore masked text (see `MaskedAutoEncoder`); the data needs no labels.

    The objective gets this as its task loss. What is masked depends on seed, step and process alone, and is the same
    for all sizes of a step. While it trains, head and decoder are a module of the model; afterwards they are gone.
    """

    def __init__(self, *args: Any, auto_encoding: AutoEncoding, **kwargs: Any) -> None:
        """Take what `ElasticMixin` takes, ``embed`` among it, and how texts are masked."""
        super().__init__(*args, **kwargs)
        self.auto_encoding = auto_encoding
        self._masked: Masked | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as any Trainer does, with a head and a decoder that last as long."""
        with _attached(self._universal, MaskedAutoEncoder(self._universal, self.auto_encoding)):
            return super().train(*args, **kwargs)

    @property
    def _auto_encoder(self) -> MaskedAutoEncoder:
        return getattr(self._universal, _MODULE)  # type: ignore[no-any-return]

    def _batch(self, inputs: dict[str, Any], step: int, micro_step: int) -> dict[str, Any]:
        """Mask the batch, once for all sizes."""
        seed = hash((int(self.args.seed), step, micro_step, self.args.process_index)) % 2**63
        words = len(_word_embeddings(self._universal))
        self._masked = mask_tokens(self.auto_encoding, inputs["input_ids"], inputs["attention_mask"], words, seed)
        return {**inputs, "input_ids": self._masked.input_ids}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train as `ElasticMixin` does; processes agree about the decoder's gradients here."""
        loss = super().training_step(*args, **kwargs)
        if self.args.world_size > 1:
            for parameter in self._auto_encoder.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return loss

    def _task_loss(
        self, of_head: torch.Tensor | None, student: Returned, inputs: Mapping[str, Any], steps: int
    ) -> torch.Tensor | None:
        """Return how well a size restores the text."""
        assert self._masked is not None and student.tokens is not None and student.embeddings is not None
        masked = Masked(*(ids.to(student.tokens.device) for ids in vars(self._masked).values()))
        loss: torch.Tensor = self._auto_encoder(
            student.tokens, student.embeddings, masked, inputs["attention_mask"], _word_embeddings(self._universal)
        )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write head and decoder beside the weights of a training checkpoint."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and hasattr(self._universal, _MODULE):
            save_file(self._auto_encoder.state_dict(), Path(output_dir or str(self.args.output_dir)) / FILE_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._auto_encoder.load_state_dict(load_file(Path(resume_from_checkpoint) / FILE_NAME))


class AutoEncodingTrainer(AutoEncodingMixin, Trainer):
    """An `elastic.ElasticTrainer` that pre-trains embedders on text."""
