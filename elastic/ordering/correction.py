"""Correction without training: least squares makes up for what a narrower or shallower model has lost."""

from __future__ import annotations

import itertools
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
RIDGES = (1e-3, 3e-2, 1.0, 30.0)
"""Pulls towards the weights as they were, as shares of the mean square of the activations."""
HELD_OUT_EVERY = 4
MAX_HELD_OUT = 4
"""Every fourth calibration batch, four at most, judges instead of being fitted to."""


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
    model has in the stream after this sub-layer, in its first dimensions where the stream is narrower.
    So they make up for units that are gone (STAT, arXiv 2406.00061, section 3), for layers that are gone,
    and for what the sub-layers before left over. ``mean`` adjusts biases alone: what is gone is replaced
    by its mean update (arXiv 2407.16286).

    Every fourth batch is kept back, and a change stays only if it brings the model's outputs nearer on these: the
    outputs never move away from the full model's there.

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
        judge = _Judge(universal, small, batches)
        for layer, index in zip(small_layers, subnet.kept_layers, strict=True):
            for sublayer, target in zip(_sublayers(family, layer), _sublayers(family, full_layers[index]), strict=True):
                if not isinstance(sublayer.output, SkippedModule):
                    _correct(family, universal, target, small, sublayer, batches, method, judge)


class _Judge:
    """Tells how far a corrected model's outputs are from the full model's, on calibration data kept back for that.

    Streams alone mislead: a few tokens carry massive activations, and least squares sacrifices all others to them.
    """

    def __init__(self, universal: PreTrainedModel, small: PreTrainedModel, batches: Batches) -> None:
        self._small = small
        self._wanted = [(batch, run(universal, batch)[0].float()) for batch in kept_back(batches)]
        if not self._wanted:
            raise ElasticError("there is no calibration data with usable rows; name some with --calibration.")

    def error(self) -> float:
        """Return the mean over tokens (or examples) of the squared error relative to the output's size."""
        errors = []
        for batch, wanted in self._wanted:
            output = run(self._small, batch)[0].float()
            wanted = wanted[..., : output.shape[-1]]
            difference = (output - wanted).square().sum(-1, keepdim=True)
            size = wanted.square().sum(-1, keepdim=True).clamp(min=1e-12)
            errors.append(
                tokens(difference / size, batch).flatten() if wanted.ndim > 2 else (difference / size).flatten()
            )
        return float(torch.cat(errors).mean())


def kept_back(batches: Batches) -> list[Mapping[str, torch.Tensor]]:
    """Return the first of the calibration batches that only judge: every fourth, but no more than four."""
    found = [batch for index, batch in enumerate(batches) if _judges(index) and index < HELD_OUT_EVERY * MAX_HELD_OUT]
    # Of a single batch, the same examples fit and judge.
    return found or list(itertools.islice(batches, 1))


def _judges(index: int) -> bool:
    return index % HELD_OUT_EVERY == 1 and index < HELD_OUT_EVERY * MAX_HELD_OUT


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
    judge: _Judge,
) -> None:
    projection = sublayer.output
    has_bias = getattr(projection, "bias", None) is not None
    if method == "mean" and not has_bias:
        raise ElasticError(
            f"models of type '{family.model_type}' have no biases that could hold a mean update; use least_squares."
        )
    moments = _Moments()
    for index, batch in enumerate(batches):
        if _judges(index):
            continue
        wanted = _observe(universal, target, batch)
        here = _observe(small, sublayer, batch)
        values = here.inputs if not has_bias else torch.cat([here.inputs, torch.ones_like(here.inputs[:, :1])], 1)
        if method == "mean":
            values = values[:, -1:]
        # What the projection should add to what it adds now.
        target_after = wanted.after[:, : here.after.shape[1]]
        change = target_after - here.after
        # Every token's error counts alike, be it large or small.
        size = change.square().mean(1, keepdim=True).sqrt()
        smallest = 1e-3 * target_after.square().mean(1, keepdim=True).sqrt()
        weights = 1.0 / torch.maximum(size, smallest).clamp(min=1e-6)
        moments.add(values * weights, change * weights)
    _keep_best(projection, moments, has_bias, method, judge)


def _keep_best(projection: Any, moments: _Moments, has_bias: bool, method: Correction, judge: _Judge) -> None:
    """Try several strengths, and keep the one that brings the model's outputs nearest; maybe none."""
    original = {name: parameter.detach().clone() for name, parameter in projection.named_parameters()}
    best, best_error = dict(original), judge.error()
    for ridge in RIDGES if method == "least_squares" else RIDGES[:1]:
        change = moments.solve(ridge, has_bias)
        if has_bias:
            projection.bias.copy_(original["bias"] + change[-1].to(original["bias"]))
            change = change[:-1]
        if method == "least_squares":
            turned = change if output_dim(projection) else change.T
            projection.weight.copy_(original["weight"] + turned.to(original["weight"]))
        error = judge.error()
        if error < best_error:
            best, best_error = {name: p.detach().clone() for name, p in projection.named_parameters()}, error
    for name, parameter in projection.named_parameters():
        parameter.copy_(best[name])


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
