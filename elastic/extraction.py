"""Cuts a subnet out of a universal model: an ordinary, smaller model with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from elastic import portable
from elastic.cuts import find_cuts
from elastic.errors import CheckError
from elastic.families import Family, get_family, input_shapes
from elastic.nested import (
    Stream,
    active,
    config_of_layers,
    evaluating,
    get_elastic,
)
from elastic.space import AXES, ResolvedSpace, Subnet, check_subnet

TOLERANCE = 1e-5
"""Largest difference of float32 outputs that verification accepts: sums of the same numbers, in another order."""


def extract(model: PreTrainedModel, subnet: Subnet) -> PreTrainedModel:
    """Return ``subnet`` of a universal model as a model of its own, with copied weights.

    A uniform subnet becomes a stock model of its class. Where layers differ, a stock configuration
    cannot say so: the result is of a subclass whose code is saved with it, and that stock
    ``from_pretrained`` refuses without ``trust_remote_code=True``.

    Raises:
        SpaceError: if the model cannot run the subnet.
        ElasticError: if the model is not elastic.
    """
    elastic = get_elastic(model)
    check_subnet(subnet, elastic.dims)
    small = smaller_model(type(model), model.config, subnet, model.dtype)
    source = model.state_dict()
    cuts = find_cuts(elastic.family, model, small, subnet)
    small.load_state_dict({name: cut.take(source[cut.source]) for name, cut in cuts.items()})
    small.generation_config = copy.deepcopy(getattr(model, "generation_config", None))  # type: ignore[assignment]
    return small.to(model.device).train(model.training)  # type: ignore[arg-type]


def smaller_model(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, subnet: Subnet, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Build the model that ``subnet`` of a universal model becomes, its weights not set, on the current device.

    Args:
        model_class: of the universal model.
        config: of the universal model.
        subnet: what is to be cut out of it.
        dtype: of the weights; as the configuration says by default.
    """
    family = get_family(config)
    stream = None if subnet.hidden is None else Stream.of(family, model_class, config)
    small = smaller_config(family, config, subnet, stream)
    if getattr(small, "layer_sizes", None):
        model_class = portable.model_class(model_class)
    with torch.random.fork_rng(devices=[]):
        return model_class._from_config(small, dtype=dtype)  # type: ignore[no-any-return]


def smaller_config(
    family: Family, config: PreTrainedConfig, subnet: Subnet, stream: Stream | None = None
) -> PreTrainedConfig:
    """Return the configuration of the subnet: a stock one, or where layers differ one with the sizes of each.

    ``stream`` is that of the universal model, where the subnet has a hidden size of its own.
    """
    kept = subnet.kept_layers
    result = config_of_layers(family, config, kept)
    small = family.body_config(result)
    stock = is_portable(family, config, subnet)
    if subnet.hidden and not stock:
        # Rotary embeddings are computed anew when weights are loaded, and would derive the head size from the slice.
        small.head_dim = family.head_dim(config)
    if stock:
        dims, ffn, heads = family.dims(config), subnet.ffn[kept[0]], subnet.heads[kept[0]]
        if family.config_has_head_dim and (heads != dims.heads or subnet.hidden):
            # Before both: a stock configuration would derive the head size from them.
            small.head_dim = family.head_dim(config)
        for name in family.hidden_fields(config) if subnet.hidden else ():
            setattr(small, name, subnet.hidden)
        if ffn != family.ffn(small):
            setattr(small, family.ffn_field, family.ffn_value(ffn, subnet.hidden or dims.hidden))
        if heads != dims.heads:
            setattr(small, family.heads_field, heads)
            if family.kv_heads_field:
                setattr(small, family.kv_heads_field, heads // dims.heads_per_group)
    if family.derived_fields:
        data = {name: value for name, value in result.to_dict().items() if name not in family.derived_fields}
        attention = config._attn_implementation
        result = type(config).from_dict(data)
        result._attn_implementation = attention
    return result if stock else _with_layer_sizes(result, family, config, subnet, stream)


def _with_layer_sizes(
    result: PreTrainedConfig, family: Family, config: PreTrainedConfig, subnet: Subnet, stream: Stream | None
) -> PreTrainedConfig:
    dims = family.dims(config)
    whole = all((subnet.ffn[i], subnet.heads[i]) == (dims.ffn, dims.heads) for i in subnet.kept_layers)
    if whole and not subnet.hidden:
        # Sizes alone would not make transformers refuse what it cannot build: a model without its first layer.
        setattr(family.body_config(result), family.ffn_field, family.ffn_value(dims.ffn + 1, dims.hidden))
    weights = None if stream is None else stream.counts(family.layers)
    return portable.make_portable(result, family, config, subnet, weights)


def is_portable(family: Family, config: PreTrainedConfig, subnet: Subnet) -> bool:
    """Whether a stock configuration can say what the subnet is, so that ``from_pretrained`` loads it."""
    if not subnet.is_uniform:
        return False
    first = subnet.kept_layers[0]
    if first and family.first_layer_lacks:
        return False
    dims, ffn, heads = family.dims(config), subnet.ffn[first], subnet.heads[first]
    hidden = subnet.hidden or dims.hidden
    if hidden != dims.hidden and any(getattr(config, name) == hidden for name in family.hidden_too):
        # A size that happens to be equal, and then stands for the stream.
        return False
    stated = (ffn, hidden) if family.ffn_is_ratio else (ffn, dims.hidden)
    if stated != (dims.ffn, dims.hidden) and not (
        family.config_has_ffn and isinstance(family.ffn_value(ffn, hidden), int)
    ):
        return False
    if (heads, hidden) == (dims.heads, dims.hidden):
        return True
    if family.config_has_head_dim:
        return not (family.heads_divide_hidden and hidden % heads)
    return heads * family.head_dim(config) == hidden


def choices_stock_refuses(family: Family, config: PreTrainedConfig, space: ResolvedSpace) -> dict[str, list[int]]:
    """Return the choices whose uniform subnets no stock configuration can say, by axis; they need `elastic.load`."""
    refused = {
        axis: [c for c in getattr(space, axis) if not is_portable(family, config, space.uniform(**{axis: c}))]
        for axis in AXES
    }
    return {axis: choices for axis, choices in refused.items() if choices}


def take_layer_sizes(data: dict[str, Any]) -> bool:
    """Take the sizes of single layers out of the JSON form of a configuration, and return whether it had any."""
    parts = [data, *(part for part in data.values() if isinstance(part, dict))]
    return any([part.pop("per_layer_config", None) is not None for part in parts])


def verify_extraction(
    model: PreTrainedModel, subnet: Subnet, small: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> float:
    """Return the largest difference between all outputs of ``small`` and of ``model`` running ``subnet``.

    Raises:
        CheckError: if it is above `TOLERANCE`, or not a number.
    """
    with torch.no_grad(), evaluating(model), evaluating(small):
        with active(model, subnet):
            expected = _tensors(model(**inputs))
        actual = _tensors(small(**inputs))
    # The largest of the list, NaN included, which Python's max would lose.
    difference = float(torch.tensor([largest_difference(*pair) for pair in zip(expected, actual, strict=True)]).max())
    if not difference <= TOLERANCE:
        raise CheckError(
            f"the extracted model differs from the universal one by {difference:.1e}, more than {TOLERANCE:.0e}; "
            "nothing was written."
        )
    return difference


def _tensors(outputs: ModelOutput) -> list[torch.Tensor]:
    return [value for value in outputs.to_tuple() if isinstance(value, torch.Tensor)]


def largest_difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest absolute difference of two tensors; NaN where either has one."""
    return float((expected.float() - actual.float()).abs().max())


def sample_inputs(config: PreTrainedConfig, *, batch: int, tokens: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random inputs that a model of this configuration takes, with padding where it has text."""
    generator = torch.Generator().manual_seed(seed)
    ((name, shape),) = input_shapes(config, batch=batch, tokens=tokens).items()
    if name != "input_ids":
        return {name: torch.randn(shape, generator=generator)}
    mask = torch.ones(shape, dtype=torch.long)
    mask[1:, shape[1] - shape[1] // 4 :] = 0
    return {name: torch.randint(0, config.vocab_size, shape, generator=generator), "attention_mask": mask}
