"""Verifies an extracted checkpoint against the universal one, a layer of each at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from elastic.cuts import Cut
from elastic.errors import CheckError
from elastic.extraction import TOLERANCE, largest_difference, sample_inputs, smaller_model
from elastic.nested import active, complete_first_layer, config_of_layers, make_elastic
from elastic.space import SearchSpace, Subnet
from elastic.streaming.extract import Extraction
from elastic.streaming.source import Stored, find_tensors

BATCH, TOKENS = 2, 8


def verify(extraction: Extraction, paths: Sequence[Path], count: Callable[[int], None]) -> dict[str, Any]:
    """Check that every layer computes what it does in the universal model, and return what was seen, for the record.

    Layers run in float32 on random hidden states; what lies outside of them must be equal bit by bit.

    Args:
        extraction: what was cut.
        paths: the files that were written.
        count: called with the number of bytes of each part that has been checked.

    Raises:
        CheckError: if outputs differ by more than `TOLERANCE`, of their largest value where that is above 1, or
            a tensor differs at all.
    """
    written = find_tensors(paths, extraction.small)
    layers = extraction.family.find_layers(extraction.small)[0] + "."
    for name in extraction.saved.values():
        if not name.startswith(layers):
            cut = extraction.cuts[name]
            if not _equal(extraction.stored[cut.source], cut, written[name]):
                raise CheckError(f"'{name}' is not what was cut from the universal model; nothing was written.")
            count(_num_bytes(written[name]))
    largest = 0.0
    for index, layer in enumerate(extraction.subnet.kept_layers):
        expected = _universal_output(extraction, layer)
        actual = _extracted_output(extraction, written, index, layer)
        difference = largest_difference(expected, actual)
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise CheckError(
                f"layer {index} of the extracted model, which is layer {layer} of the universal one, differs from it "
                f"by {difference:.1e}, more than {TOLERANCE:.0e} of its outputs; nothing was written."
            )
        largest = max(largest, difference)
        count(sum(_num_bytes(written[name]) for name in written if name.startswith(f"{layers}{index}.")))
    return {
        "max_abs_diff": largest,
        "tolerance": TOLERANCE,
        "by": f"every layer alone, in float32, on random hidden states of {BATCH}x{TOKENS}; all else bit by bit",
    }


def _num_bytes(stored: Stored) -> int:
    return stored.dtype.itemsize * torch.Size(stored.shape).numel()


def _equal(source: Stored, cut: Cut, written: Stored) -> bool:
    if not cut.ranges:
        return _same_bits(source.read().to(written.dtype), written.read())
    start = 0
    for piece in source.chunks(cut, written.dtype):
        rows = ((slice(start, start + len(piece)),), *((slice(0, size),) for size in written.shape[1:]))
        if not _same_bits(piece, torch.cat(list(written.chunks(Cut(written.name, rows), written.dtype)))):
            return False
        start += len(piece)
    return start == written.shape[0]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _universal_output(extraction: Extraction, layer: int) -> torch.Tensor:
    family, config, subnet = extraction.family, extraction.model.config, extraction.subnet
    with init_empty_weights(include_buffers=False):
        model = type(extraction.model)(config_of_layers(family, config, (layer,)))
        if layer:
            complete_first_layer(family.find_layers(model)[1][0], family)
    model = make_elastic(model, SearchSpace())
    alone = dataclasses.replace(subnet, ffn=(subnet.ffn[layer],), heads=(subnet.heads[layer],))
    cuts = {cut.source: cut for cut in extraction.cuts.values()}
    return _output(extraction, model, extraction.stored, cuts, layer, layer, alone)


def _extracted_output(extraction: Extraction, written: Mapping[str, Stored], index: int, layer: int) -> torch.Tensor:
    subnet = extraction.subnet
    alone = dataclasses.replace(
        subnet,
        ffn=tuple(ffn if i == layer else 0 for i, ffn in enumerate(subnet.ffn)),
        heads=tuple(heads if i == layer else 0 for i, heads in enumerate(subnet.heads)),
    )
    with init_empty_weights(include_buffers=False):
        model = smaller_model(type(extraction.model), extraction.model.config, alone, torch.float32)
    return _output(extraction, model, written, {}, index, layer, None)


class _Reached(Exception):
    """Ends a forward pass after its one layer: what follows is not needed."""


def _output(
    extraction: Extraction,
    model: PreTrainedModel,
    stored: Mapping[str, Stored],
    cuts: Mapping[str, Cut],
    index: int,
    seed: int,
    subnet: Subnet | None,
) -> torch.Tensor:
    """Return what the one layer of a model returns for random hidden states, with the weights of layer ``index``.

    Of weights that ``cuts`` name, only what stays is read, as the active subnet must. What comes before the layer
    runs too, on weights of zero that take no memory: it makes masks and positions.
    """
    path, (layer,) = extraction.family.find_layers(model)
    weights = {
        name: torch.zeros(()).expand(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{path}.0.")
    }
    for name in model.state_dict().keys() - weights.keys():
        of = f"{path}.{index}.{name.removeprefix(f'{path}.0.')}"
        weights[name] = _read(stored[of], cuts.get(of))
    model.load_state_dict(weights, assign=True)
    seen: list[torch.Tensor] = []

    def randomise(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        hidden = torch.randn(given.shape, generator=torch.Generator().manual_seed(seed))
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, torch.Tensor) else output[0])
        raise _Reached

    layer.register_forward_pre_hook(randomise, with_kwargs=True)
    layer.register_forward_hook(stop)
    inputs: dict[str, Any] = dict(sample_inputs(model.config, batch=BATCH, tokens=TOKENS))
    if model.can_generate():
        inputs["use_cache"] = False
    with torch.no_grad(), nullcontext() if subnet is None else active(model, subnet):
        try:
            model.eval()(**inputs)
        except _Reached:
            layer.to("meta")  # frees its weights now, rather than when Python finds the cycles of a module
            return seen[0]
    raise AssertionError("the layer did not run")


def _read(stored: Stored, cut: Cut | None) -> torch.Tensor:
    """Read a tensor, in float32 if it has floating point; zeros, which take no memory, where a cut leaves nothing."""
    kind = np.float32 if stored.dtype.is_floating_point else np.int64
    tensor = torch.from_numpy(np.zeros(stored.shape, kind))
    whole = stored.read()
    ranges = cut.ranges if cut else [(slice(0, size),) for size in stored.shape]
    for part in itertools.product(*ranges):
        tensor[part] = whole[part].to(tensor.dtype)
    return tensor
