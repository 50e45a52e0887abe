"""The residual stream in the order of importance: its dimensions change places through the whole model.

Every weight that reads or writes the stream is permuted alike. Norms take their statistics over all dimensions, so the
whole model computes what it did; those of a slice are over the slice, and training has to get used to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elastic.errors import ElasticError
from elastic.families import Block, get_family
from elastic.nested import Stream, evaluating
from elastic.ordering.permutation import Order, move, positions
from elastic.ordering.scores import check_calibration
from elastic.ordering.sites import Batches, run, tokens


def find_stream(model: PreTrainedModel) -> Stream:
    """Return which dimensions of a model's weights are those of its residual stream.

    Raises:
        ElasticError: if its width is fixed.
    """
    family = get_family(model.config)
    if reason := family.dims(model.config).hidden_fixed:
        raise ElasticError(f"the residual stream cannot be ordered, because {reason}.")
    return Stream.of(family, type(model), model.config)


def permute_hidden(model: PreTrainedModel, order: Order) -> None:
    """Put the dimensions of the residual stream into this order, in place; the model computes what it did.

    Embeddings, norms, projections and heads follow, tied weights once. Of a model that returns its stream
    (an embedder's Transformer), the outputs' dimensions change places as well.

    Args:
        model: any model whose family has an elastic hidden size, elastic or not.
        order: the dimensions, the most important first.

    Raises:
        ElasticError: if the order is no permutation of them, or the width is fixed.
    """
    stream = find_stream(model)
    if sorted(order) != list(range(stream.hidden)):
        raise ElasticError(f"the order of the hidden size is not a permutation of {stream.hidden} dimensions.")
    index = torch.as_tensor(order)
    with torch.no_grad():
        for weight, dim, blocks in _weights(model, stream):
            move(weight, torch.cat([positions(block, index) for block in blocks]), dim)


def score_hidden(model: PreTrainedModel, batches: Batches = ()) -> torch.Tensor:
    """Return the importance of every dimension of the residual stream: ``(hidden,)``, float64.

    With calibration data, the activations after each norm: mean of their sizes over tokens, L2 over
    examples, added up over norms (Minitron, arXiv 2407.14679, section 2.2). Without, the L2 norm of all
    weights that read or write the dimension, each weight relative to its mean square.

    Raises:
        ElasticError: if activations are not finite, or the width is fixed.
    """
    stream = find_stream(model)
    norms = _norms(model, stream)
    sums = [torch.zeros(stream.hidden, dtype=torch.float64) for _ in norms]
    current: dict[str, Any] = {}

    def add(index: int, output: torch.Tensor) -> None:
        for means in _mean_sizes(output.detach(), current["batch"]):
            sums[index] += means.double().square().cpu()

    with evaluating(model), torch.no_grad(), _outputs_hooked(norms, add):
        for batch in batches:
            current["batch"] = batch
            run(model, batch)
    if not current:
        return _magnitude(model, stream)
    check_calibration(1, sums)
    return torch.stack([total.sqrt() for total in sums]).sum(0)


def _mean_sizes(output: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the mean size of each dimension over the tokens of each example, padding left out."""
    mask = batch.get("attention_mask")
    for index, example in enumerate(output.reshape(len(output), -1, output.shape[-1])):
        own = {} if mask is None else {"attention_mask": mask[index : index + 1]}
        yield tokens(example[None], own).abs().float().mean(0)


@contextmanager
def _outputs_hooked(modules: list[nn.Module], hook: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call ``hook(index, output)`` after each of ``modules`` has run, inside the ``with`` block."""

    def of_module(index: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def call(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            hook(index, output)

        return call

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            stack.callback(module.register_forward_hook(of_module(index)).remove)
        yield


def _norms(model: PreTrainedModel, stream: Stream) -> list[nn.Module]:
    """Return the modules that scale the stream dimension by dimension: LayerNorms and RMSNorms."""
    whole = ((0, (Block(0, stream.hidden, 1),)),)
    return [
        module
        for path, module in model.named_modules()
        if stream.dims(f"{path}.weight") == whole and not isinstance(module, (nn.Linear, nn.Embedding, Conv1D))
        and getattr(module, "weight", torch.empty(0, 0)).ndim == 1
    ]  # fmt: skip


def _weights(model: PreTrainedModel, stream: Stream) -> Iterator[tuple[torch.Tensor, int, tuple[Block, ...]]]:
    for name, parameter in model.named_parameters():
        for dim, blocks in stream.dims(name):
            yield parameter, dim, blocks


def _magnitude(model: PreTrainedModel, stream: Stream) -> torch.Tensor:
    squares = torch.zeros(stream.hidden, dtype=torch.float64)
    for weight, dim, blocks in _weights(model, stream):
        sizes = weight.detach().double().square()
        relative = sizes / sizes.mean().clamp(min=1e-30)
        along = relative.movedim(dim, 0).flatten(1).mean(1).cpu() if relative.ndim > 1 else relative.cpu()
        squares += along.view(len(blocks), stream.hidden).sum(0)
    return squares.sqrt()
