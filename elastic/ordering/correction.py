"""Correction without training: least squares makes up for what a narrower or shallower model has lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from elastic.errors import ElasticError
from elastic.families import Family, output_dim
from elastic.nested import SkippedModule, active, evaluating, get_elastic
from elastic.ordering.sites import Batches, layers_of, run, tokens
from elastic.space import Subnet

Correction = Literal["least_squares", "mean"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Pulls towards the weights as they were, as shares of the mean square of the activations."""
HELD_OUT_EVERY = 4
"""Of so many calibration batches, one decides how strong the pull is."""


@dataclass(frozen=True)
class _Sublayer:
    """Where an output projection stands: what it adds, and what it is added to."""

    output: nn.Module
    residual: nn.Module | None
    """The module whose first input is the stream that the sub-layer adds to; None where a norm or a scale lies
    between, so that the stream after it is not linear in the projection."""


def correct(
    universal: PreTrainedModel,
    subnet: Subnet,
    small: PreTrainedModel,
    batches: Batches,
    *,
    method: Correction = "least_squares",
) -> None:
    """Adjust the output projections of an extracted model so that its streams follow the universal model's.

    One sub-layer after the other, on the stream of what has been corrected already: the weights (and bias)
    out of the neurons or heads that are left become the least-squares solution for what the full
    model has in the stream after this sub-layer. So they make up for units that are gone (STAT, arXiv
    2406.00061, section 3), for layers that are gone, and for what the sub-layers before left over. ``mean``
    adjusts biases alone: what is gone is replaced by its mean update (arXiv 2407.16286).

    Args:
        universal: the universal model; its largest subnet is the target.
        subnet: the subnet that ``small`` is.
        small: the extracted model; changed in place.
        batches: calibration inputs.
        method: ``least_squares`` or ``mean``.

    Raises:
        ElasticError: if there are no batches, or ``mean`` is asked of a family without biases.
    """
    largest = get_elastic(universal).resolved.largest
    family, small_layers = layers_of(small)
    _, full_layers = layers_of(universal)
    with torch.no_grad(), evaluating(universal), evaluating(small), active(universal, largest):
        for layer, index in zip(small_layers, subnet.kept_layers, strict=True):
            for sublayer, target in zip(_sublayers(family, layer), _sublayers(family, full_layers[index]), strict=True):
                if not isinstance(sublayer.output, SkippedModule):
                    _correct(family, universal, target, small, sublayer, batches, method)


def _sublayers(family: Family, layer: nn.Module) -> list[_Sublayer]:
    mlp_start = layer.get_submodule(next(iter(family.skip_mlp)))

    def output(path: str) -> nn.Module:
        module: nn.Module = layer
        for part in path.split("."):
            if isinstance(module, SkippedModule):
                return module
            module = module.get_submodule(part)
        return module

    streams = (None, None) if family.scales_before_adding else (layer, mlp_start)
    return [
        _Sublayer(output(path), stream)
        for path, stream in zip((family.head_output, family.ffn_output), streams, strict=True)
    ]


def _correct(
    family: Family,
    universal: PreTrainedModel,
    target: _Sublayer,
    small: PreTrainedModel,
    sublayer: _Sublayer,
    batches: Batches,
    method: Correction,
) -> None:
    projection = sublayer.output
    has_bias = getattr(projection, "bias", None) is not None
    if method == "mean" and not has_bias:
        raise ElasticError(
            f"models of type '{family.model_type}' have no biases that could hold a mean update; use least_squares."
        )
    fitted, held_out = _Moments(), _Moments()
    for index, batch in enumerate(batches):
        wanted = _observe(universal, target, batch)
        here = _observe(small, sublayer, batch)
        values = here.inputs if not has_bias else torch.cat([here.inputs, torch.ones_like(here.inputs[:, :1])], 1)
        if method == "mean":
            values = values[:, -1:]
        # What the projection should add to what it adds now.
        (held_out if index % HELD_OUT_EVERY == 1 else fitted).add(values, wanted.after - here.after)
    if not fitted.count:
        raise ElasticError("there is no calibration data with usable rows; name some with --calibration.")
    change = _regression(fitted, held_out, has_bias)
    weight: Any = projection.weight
    if has_bias:
        projection.bias.add_(change[-1].to(weight))  # type: ignore[operator,union-attr]
        change = change[:-1]
    if method == "least_squares":
        weight.add_((change if output_dim(projection) else change.T).to(weight))


class _Moments:
    """What least squares needs of the data: it does not grow with it."""

    def __init__(self) -> None:
        self.count = 0
        self.gram = torch.zeros(())
        self.cross = torch.zeros(())

    def add(self, values: torch.Tensor, wanted: torch.Tensor) -> None:
        self.gram = self.gram + (values.T @ values).double()
        self.cross = self.cross + (values.T @ wanted).double()
        self.count += len(values)

    def solve(self, ridge: float, has_bias: bool) -> torch.Tensor:
        """Return the change ``(columns, out)`` with the least squared error, small changes preferred."""
        pull = torch.full((len(self.gram),), ridge * float(self.gram.diagonal().mean()), dtype=self.gram.dtype)
        if has_bias:
            pull[-1] = 1e-9 * float(self.gram[-1, -1])
        return torch.linalg.solve(self.gram + torch.diag(pull), self.cross)

    def gain(self, change: torch.Tensor) -> float:
        """Return by how much a change lowers the squared error on this data."""
        return float(2 * (change * self.cross).sum() - (change * (self.gram @ change)).sum())


def _regression(fitted: _Moments, held_out: _Moments, has_bias: bool) -> torch.Tensor:
    """Choose the ridge by data that was held out, then fit to all; nothing changes where nothing helps there."""
    if not held_out.count:
        return fitted.solve(RIDGES[len(RIDGES) // 2], has_bias)
    gains = {ridge: held_out.gain(fitted.solve(ridge, has_bias)) for ridge in RIDGES}
    best = max(gains, key=gains.__getitem__)
    both = _Moments()
    both.gram, both.cross = fitted.gram + held_out.gram, fitted.cross + held_out.cross
    return both.solve(best, has_bias) if gains[best] > 0 else torch.zeros_like(both.cross)


class _StopForward(Exception):
    """Ends a forward pass whose rest is not needed."""


@dataclass(frozen=True)
class _Observed:
    inputs: torch.Tensor
    """``(tokens, columns)``: what flows into the output projection."""
    after: torch.Tensor
    """``(tokens, hidden)``: the stream after the projection's output was added to it, or that output alone."""


def _observe(model: PreTrainedModel, sublayer: _Sublayer, batch: Mapping[str, torch.Tensor]) -> _Observed:
    seen: dict[str, torch.Tensor] = {}

    def note_residual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["residual"] = args[0] if args else kwargs["hidden_states"]

    def note_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        seen["inputs"], seen["output"] = args[0], output
        raise _StopForward

    handles = [sublayer.output.register_forward_hook(note_output)]
    if sublayer.residual is not None:
        handles.append(sublayer.residual.register_forward_pre_hook(note_residual, with_kwargs=True))
    try:
        run(model, batch)
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return _Observed(
        inputs=tokens(seen["inputs"], batch).float(),
        after=tokens(seen["output"] + seen.get("residual", 0), batch).float(),
    )
