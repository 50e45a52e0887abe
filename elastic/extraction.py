"""Cuts a subnet out of a universal model: an ordinary, smaller model with the same outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from elastic.cuts import find_cuts
from elastic.errors import CheckError
from elastic.families import Block, Family, Skip, input_shapes, num_inputs, num_outputs
from elastic.nested import (
    SkippedModule,
    Stream,
    active,
    complete_first_layer,
    config_of_layers,
    evaluating,
    get_elastic,
    set_head_sizes,
)
from elastic.space import AXES, ModelDims, ResolvedSpace, Subnet, check_subnet

TOLERANCE = 1e-5
"""Largest difference of float32 outputs that verification accepts: sums of the same numbers, in another order."""


def extract(model: PreTrainedModel, subnet: Subnet) -> PreTrainedModel:
    """Return ``subnet`` of a universal model as a model of its own, with copied weights.

    A uniform subnet becomes a stock model of its class. Where layers differ, a stock configuration
    cannot say so: the result is of a subclass that `elastic.load` knows, and that stock
    ``from_pretrained`` refuses.

    Raises:
        SpaceError: if the model cannot run the subnet.
        ElasticError: if the model is not elastic.
    """
    elastic = get_elastic(model)
    check_subnet(subnet, elastic.dims)
    model_class = smaller_class(type(model), elastic.family, elastic.dims, model.config, subnet)
    config = smaller_config(elastic.family, model.config, subnet)
    with torch.random.fork_rng(devices=[]):
        small = model_class._from_config(config, dtype=model.dtype)
    source = model.state_dict()
    cuts = find_cuts(elastic.family, model, small, subnet)
    small.load_state_dict({name: cut.take(source[cut.source]) for name, cut in cuts.items()})
    small.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return small.to(model.device).train(model.training)  # type: ignore[arg-type]


def smaller_config(family: Family, config: PreTrainedConfig, subnet: Subnet) -> PreTrainedConfig:
    """Return the stock configuration of the subnet; where layers differ, that of its largest layer."""
    kept = subnet.kept_layers
    result = config_of_layers(family, config, kept)
    small = family.body_config(result)
    portable = is_portable(family, config, subnet)
    if subnet.hidden and not portable:
        # Rotary embeddings are computed anew when weights are loaded, and would derive the head size from the slice.
        small.head_dim = family.head_dim(config)
    if portable:
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
    return result


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


def smaller_class(
    model_class: type[PreTrainedModel], family: Family, dims: ModelDims, config: PreTrainedConfig, subnet: Subnet
) -> type[PreTrainedModel]:
    """Return the class of the extracted model: the stock one, or a subclass whose layers differ."""
    if is_portable(family, config, subnet):
        return model_class
    blocks = {**family.head_blocks(config), **family.ffn_blocks(config)}
    head_dim = family.head_dim(config)
    hidden_fields = family.hidden_fields(config)
    stream = None if subnet.hidden is None else Stream.of(family, model_class, config)

    def state_hidden(self: Any, hidden: int) -> None:
        for name in hidden_fields:
            setattr(family.body_config(self.config), name, hidden)

    def init(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for position, (layer, index) in enumerate(zip(family.find_layers(self)[1], subnet.kept_layers, strict=True)):
            if index and not position:
                complete_first_layer(layer, family)
            shrink_layer(layer, family, blocks, dims, head_dim, ffn=subnet.ffn[index], heads=subnet.heads[index])
        if stream is not None:
            stream.shrink(self, subnet.hidden or dims.hidden)
            state_hidden(self, subnet.hidden or dims.hidden)

    def save_pretrained(self: Any, save_directory: str | Path, **kwargs: Any) -> Any:
        # Configurations are checked when they are saved, and may refuse the slice with the universal model's heads.
        state_hidden(self, dims.hidden)
        try:
            result = model_class.save_pretrained(self, save_directory, **kwargs)
        finally:
            state_hidden(self, subnet.hidden or dims.hidden)
        _write_per_layer_config(Path(save_directory) / "config.json", family, self.config, dims, subnet)
        return result

    # The stock name: it is what transformers writes into the configuration as the architecture.
    body = {"__init__": init, "save_pretrained": save_pretrained, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), body)


def shrink_layer(
    layer: nn.Module,
    family: Family,
    blocks: Mapping[str, tuple[Block, ...]],
    dims: ModelDims,
    head_dim: int,
    *,
    ffn: int,
    heads: int,
) -> None:
    """Give one stock layer the sizes of its choice, or take a whole sub-layer out."""
    if heads:
        units = heads // dims.heads_per_group
        for path in {projection.path for projection in family.head_inputs}:
            _resize(layer, path, rows=sum(units * block.size for block in blocks[path]))
        _resize(layer, family.head_output, columns=heads * head_dim)
        set_head_sizes(layer, family, heads, head_dim, dims.heads_per_group)
    else:
        _remove(layer, family.skip_attention)
    if ffn:
        for path in set(family.ffn_inputs):
            _resize(layer, path, rows=sum(ffn * block.size for block in blocks[path]))
        _resize(layer, family.ffn_output, columns=ffn)
    else:
        _remove(layer, family.skip_mlp)


def _resize(layer: nn.Module, path: str, *, rows: int | None = None, columns: int | None = None) -> None:
    old = layer.get_submodule(path)
    rows, columns = rows or num_outputs(old), columns or num_inputs(old)
    weight: torch.Tensor = old.weight  # type: ignore[assignment]
    new: nn.Module
    if isinstance(old, Conv1D):
        with torch.device(weight.device):
            new = Conv1D(rows, columns).to(weight.dtype)
    else:
        new = nn.Linear(columns, rows, bias=old.bias is not None, device=weight.device, dtype=weight.dtype)
    layer.set_submodule(path, new)


def _remove(layer: nn.Module, modules: Mapping[str, Skip]) -> None:
    for path, skip in modules.items():
        layer_idx = getattr(layer.get_submodule(path), "layer_idx", None)
        layer.set_submodule(path, SkippedModule(skip, layer_idx))


def _write_per_layer_config(
    path: Path, family: Family, model_config: PreTrainedConfig, dims: ModelDims, subnet: Subnet
) -> None:
    """Add transformers' ``per_layer_config`` to a saved configuration.

    Every layer that differs also gets a size, 0 where a sub-layer is skipped: transformers refuses
    to build such a model, whereas a lone ``skip`` would be ignored, and missing weights made up.
    """
    config = json.loads(path.read_text())
    body = config[family.config_part] if family.config_part else config
    per_layer = {}
    for index, layer in enumerate(subnet.kept_layers):
        ffn, heads = subnet.ffn[layer], subnet.heads[layer]
        entry: dict[str, Any] = {family.ffn_field: _json_ffn(family, body, ffn), family.heads_field: heads}
        if family.kv_heads_field:
            entry[family.kv_heads_field] = heads // dims.heads_per_group
        if subnet.hidden:
            entry[family.body_config(model_config).attribute_map.get("hidden_size", "hidden_size")] = subnet.hidden
        skipped = [name for name, size in (("attention", heads), ("mlp", ffn)) if not size]
        if skipped:
            entry["skip"] = skipped
        per_layer[str(index)] = entry
    whole = all((subnet.ffn[i], subnet.heads[i]) == (dims.ffn, dims.heads) for i in subnet.kept_layers)
    if whole and not subnet.hidden:
        # Sizes alone would not make transformers refuse what it cannot build: a model without its first layer.
        body[family.ffn_field] = _json_ffn(family, body, dims.ffn + 1)
    body["per_layer_config"] = per_layer
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _json_ffn(family: Family, body: Mapping[str, Any], ffn: int) -> int | float:
    if not family.ffn_is_ratio:
        return ffn
    whole, rest = divmod(ffn, body["hidden_size"])
    return ffn / body["hidden_size"] if rest else whole


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
