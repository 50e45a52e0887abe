"""Importance of layers and sub-layers: which of them a shallow subnet should keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from elastic.errors import ElasticError
from elastic.nested import active, evaluating, get_elastic
from elastic.ordering.sites import Batches, layers_of, run, tokens
from elastic.space import DropOrder, ModelDims, Subnet

DepthMethod = Literal["cosine", "angular", "output"]
DEPTH_METHODS: tuple[DepthMethod, ...] = get_args(DepthMethod)
Outputs = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]


def drop_order(
    model: PreTrainedModel, method: DepthMethod, batches: Batches, *, outputs: Outputs | None = None
) -> DropOrder:
    """Return in which order layers, attention and MLP sub-layers leave, the least important first.

    - ``cosine``: one minus the cosine similarity between the stream before and after, averaged over tokens
      (LLM-Drop, arXiv 2406.15786, section 3.2, for sub-layers; ShortGPT, arXiv 2403.03853, for layers).
    - ``angular``: for layers, the angular distance of the stream at the last token across a run of layers; the
      run that leaves grows by the neighbour that keeps the distance smallest, so that orders nest (after "The
      Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887, equation 8, which picks a new run for
      each depth). Sub-layers as with ``cosine``.
    - ``output``: change of the model's output when it is skipped, found greedily: the one that changes least
      leaves, and the next is looked for without it. ``n (n + 1) / 2`` passes over the data for ``n`` layers.

    Args:
        model: an elastic model.
        method: one of `DEPTH_METHODS`.
        batches: calibration inputs.
        outputs: for ``output``: from what the model returns and its batch to what counts; by default the first
            tensor returned.

    Raises:
        ElasticError: if the method is unknown, or there are no batches.
    """
    if method not in DEPTH_METHODS:
        raise ElasticError(f"the depth importance '{method}' is not one of {', '.join(DEPTH_METHODS)}.")
    dims = get_elastic(model).dims
    if method == "output":
        measured = outputs or (lambda returned, batch: returned[0])
        return DropOrder(*(_greedy(model, dims, part, batches, measured) for part in ("layers", "attention", "mlp")))
    streams = _Streams(model, batches)
    attention, mlp = streams.sublayer_changes
    layers = _leaving_run(streams.angles) if method == "angular" else _rising(streams.layer_changes)
    return DropOrder(layers, _rising(attention), _rising(mlp))


def _rising(scores: torch.Tensor) -> tuple[int, ...]:
    return tuple(torch.sort(scores, stable=True).indices.tolist())


class _Streams:
    """How much the stream changes across layers and sub-layers, averaged over a calibration set."""

    def __init__(self, model: PreTrainedModel, batches: Batches) -> None:
        family, layers = layers_of(model)
        num_layers = len(layers)
        middles = [layer.get_submodule(next(iter(family.skip_mlp))) for layer in layers]
        seen: dict[tuple[str, int], torch.Tensor] = {}

        def note(kind: str, index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen[kind, index] = args[0] if args else kwargs["hidden_states"]

            return hook

        def note_last(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen["layer", num_layers] = output[0] if isinstance(output, tuple) else output

        handles = [
            module.register_forward_pre_hook(note(kind, index), with_kwargs=True)
            for kind, modules in (("layer", layers), ("middle", middles))
            for index, module in enumerate(modules)
        ]
        handles.append(layers[-1].register_forward_hook(note_last))
        sums = torch.zeros(3, num_layers, dtype=torch.float64)
        angles = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
        num_tokens = num_rows = 0
        try:
            with torch.no_grad(), evaluating(model):
                for batch in batches:
                    run(model, batch)
                    for index in range(num_layers):
                        before, middle, after = seen["layer", index], seen["middle", index], seen["layer", index + 1]
                        for row, (start, end) in enumerate(((before, after), (before, middle), (middle, after))):
                            sums[row, index] += _dissimilarity(tokens(start, batch), tokens(end, batch))
                    num_tokens += len(tokens(seen["layer", 0], batch))
                    last = torch.stack([_last_token(seen["layer", i], batch) for i in range(num_layers + 1)])
                    cosines = F.cosine_similarity(last[:, None], last[None, :], dim=-1).clamp(-1.0, 1.0)
                    angles += (cosines.arccos() / torch.pi).sum(-1).cpu()
                    num_rows += last.shape[1]
        finally:
            for handle in handles:
                handle.remove()
        if not num_rows:
            raise ElasticError("there is no calibration data with usable rows; name some with --calibration.")
        self.layer_changes, *self.sublayer_changes = sums / num_tokens
        self.angles = angles / num_rows


def _dissimilarity(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return (1.0 - F.cosine_similarity(start.double(), end.double(), dim=-1)).sum().cpu()


def _last_token(stream: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The stream at the last token that is no padding: ``(batch, hidden)``."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != stream.shape[:2]:
        return stream[:, -1].double()
    positions = torch.arange(mask.shape[1], device=stream.device).expand_as(mask)
    last = positions.masked_fill(mask.to(stream.device) == 0, -1).argmax(1)
    return stream[torch.arange(len(stream), device=stream.device), last].double()


def _leaving_run(angles: torch.Tensor) -> tuple[int, ...]:
    """Grow the run of leaving layers ``[start, end)`` from its best single layer, one neighbour at a time."""
    num_layers = len(angles) - 1
    start = min(range(num_layers), key=lambda i: float(angles[i, i + 1]))
    end = start + 1
    leaving = [start]
    while len(leaving) < num_layers:
        grow_down = float(angles[start - 1, end]) if start else float("inf")
        grow_up = float(angles[start, end + 1]) if end < num_layers else float("inf")
        if grow_down < grow_up:
            start -= 1
            leaving.append(start)
        else:
            leaving.append(end)
            end += 1
    return tuple(leaving)


def _greedy(model: PreTrainedModel, dims: ModelDims, part: str, batches: Batches, outputs: Outputs) -> tuple[int, ...]:
    leaving: list[int] = []
    while len(leaving) < dims.num_layers - 1:
        candidates = [layer for layer in range(dims.num_layers) if layer not in leaving]
        changes = _output_changes(model, [_without(dims, part, {*leaving, layer}) for layer in candidates],
                                  batches, outputs)  # fmt: skip
        leaving.append(candidates[int(changes.argmin())])
    return (*leaving, *(layer for layer in range(dims.num_layers) if layer not in leaving))


def _without(dims: ModelDims, part: str, left_out: set[int]) -> Subnet:
    keep = range(dims.num_layers)
    return Subnet(
        ffn=tuple(0 if i in left_out and part != "attention" else dims.ffn for i in keep),
        heads=tuple(0 if i in left_out and part != "mlp" else dims.heads for i in keep),
    )


def _output_changes(model: PreTrainedModel, subnets: list[Subnet], batches: Batches, outputs: Outputs) -> torch.Tensor:
    """Squared difference of the output to the full model's, summed over the data, for each subnet."""
    changes = torch.zeros(len(subnets), dtype=torch.float64)
    count = 0
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            full = outputs(run(model, batch), batch).double()
            for index, subnet in enumerate(subnets):
                with active(model, subnet):
                    changed = outputs(run(model, batch), batch).double()
                difference = (changed - full).square().sum(-1, keepdim=True)
                changes[index] += tokens(difference, batch).sum().cpu()
            count += 1
    if not count:
        raise ElasticError("there is no calibration data with usable rows; name some with --calibration.")
    return changes
