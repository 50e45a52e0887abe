"""Cuts a subnet out of a universal model: an ordinary, smaller model with the same outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from elastic.errors import CheckError
from elastic.families import Family, Skip
from elastic.nested import SkippedModule, active, get_elastic
from elastic.space import ModelDims, Subnet, check_subnet

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
    renamed = _layer_names(elastic.family, model, subnet)
    weights = {name: _prefix(source[renamed(name)], target) for name, target in small.state_dict().items()}
    small.load_state_dict(weights, strict=True)
    small.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return small.to(model.device).train(model.training)  # type: ignore[arg-type]


def _prefix(weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first rows and columns of ``weight`` that fill ``target``: every nesting is a prefix."""
    return weight[tuple(slice(size) for size in target.shape)]


def _layer_names(family: Family, model: PreTrainedModel, subnet: Subnet) -> Any:
    """Return the function from a parameter's name in the small model to its name in the universal one."""
    prefix = family.find_layers(model)[0] + "."

    def renamed(name: str) -> str:
        if not name.startswith(prefix):
            return name
        index, rest = name[len(prefix) :].split(".", 1)
        return f"{prefix}{subnet.kept_layers[int(index)]}.{rest}"

    return renamed


def smaller_config(family: Family, config: PreTrainedConfig, subnet: Subnet) -> PreTrainedConfig:
    """Return the stock configuration of the subnet; where layers differ, that of its largest layer."""
    small = copy.deepcopy(config)
    kept = subnet.kept_layers
    setattr(small, family.layers_field, len(kept))
    if getattr(config, "layer_types", None):
        small.layer_types = [config.layer_types[i] for i in kept]
    if is_portable(family, config, subnet):
        dims, heads = family.dims(config), subnet.heads[kept[0]]
        setattr(small, family.ffn_field, subnet.ffn[kept[0]])
        if heads != dims.heads:
            # Before the head count: a stock configuration would derive the head size from it.
            small.head_dim = family.head_dim(config)
            setattr(small, family.heads_field, heads)
            if family.kv_heads_field:
                setattr(small, family.kv_heads_field, heads // dims.heads_per_group)
    return small


def is_portable(family: Family, config: PreTrainedConfig, subnet: Subnet) -> bool:
    """Whether a stock configuration can say what the subnet is, so that ``from_pretrained`` loads it."""
    if not subnet.is_uniform:
        return False
    heads = subnet.heads[subnet.kept_layers[0]]
    if heads == family.dims(config).heads:
        return True
    return family.config_has_head_dim and not (family.heads_divide_hidden and config.hidden_size % heads)


def smaller_class(
    model_class: type[PreTrainedModel], family: Family, dims: ModelDims, config: PreTrainedConfig, subnet: Subnet
) -> type[PreTrainedModel]:
    """Return the class of the extracted model: the stock one, or a subclass whose layers differ."""
    if is_portable(family, config, subnet):
        return model_class
    head_dim = family.head_dim(config)

    def init(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for layer, index in zip(family.find_layers(self)[1], subnet.kept_layers, strict=True):
            _shrink_layer(layer, family, dims, head_dim, ffn=subnet.ffn[index], heads=subnet.heads[index])

    def save_pretrained(self: Any, save_directory: str | Path, **kwargs: Any) -> Any:
        result = model_class.save_pretrained(self, save_directory, **kwargs)
        _write_per_layer_config(Path(save_directory) / "config.json", family, dims, subnet)
        return result

    # The stock name: it is what transformers writes into the configuration as the architecture.
    body = {"__init__": init, "save_pretrained": save_pretrained, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), body)


def _shrink_layer(layer: nn.Module, family: Family, dims: ModelDims, head_dim: int, *, ffn: int, heads: int) -> None:
    """Give one stock layer the sizes of its choice, or take a whole sub-layer out."""
    if heads:
        for projection in family.head_inputs:
            rows = (heads // dims.heads_per_group if projection.shared_by_group else heads) * head_dim
            _resize(layer, projection.path, rows=rows)
        _resize(layer, family.head_output, columns=heads * head_dim)
    else:
        _remove(layer, family.skip_attention)
    if ffn:
        for path in family.ffn_inputs:
            _resize(layer, path, rows=ffn)
        _resize(layer, family.ffn_output, columns=ffn)
    else:
        _remove(layer, family.skip_mlp)


def _resize(layer: nn.Module, path: str, *, rows: int | None = None, columns: int | None = None) -> None:
    old: nn.Linear = layer.get_submodule(path)  # type: ignore[assignment]
    new = nn.Linear(
        columns or old.in_features,
        rows or old.out_features,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    layer.set_submodule(path, new)


def _remove(layer: nn.Module, modules: Mapping[str, Skip]) -> None:
    for path, skip in modules.items():
        layer_idx = getattr(layer.get_submodule(path), "layer_idx", None)
        layer.set_submodule(path, SkippedModule(skip, layer_idx))


def _write_per_layer_config(path: Path, family: Family, dims: ModelDims, subnet: Subnet) -> None:
    """Add transformers' ``per_layer_config`` to a saved configuration.

    Every layer that differs also gets a size, 0 where a sub-layer is skipped: transformers refuses
    to build such a model, whereas a lone ``skip`` would be ignored, and missing weights made up.
    """
    config = json.loads(path.read_text())
    per_layer = {}
    for index, layer in enumerate(subnet.kept_layers):
        ffn, heads = subnet.ffn[layer], subnet.heads[layer]
        entry: dict[str, Any] = {family.ffn_field: ffn, family.heads_field: heads}
        if family.kv_heads_field:
            entry[family.kv_heads_field] = heads // dims.heads_per_group
        skipped = [name for name, size in (("attention", heads), ("mlp", ffn)) if not size]
        if skipped:
            entry["skip"] = skipped
        per_layer[str(index)] = entry
    config["per_layer_config"] = per_layer
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def verify_extraction(
    model: PreTrainedModel, subnet: Subnet, small: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> float:
    """Return the largest difference between all outputs of ``small`` and of ``model`` running ``subnet``.

    Raises:
        CheckError: if it is above `TOLERANCE`, or not a number.
    """
    with torch.no_grad(), _evaluating(model), _evaluating(small):
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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def sample_inputs(config: PreTrainedConfig, *, batch: int, tokens: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random inputs that a model of this configuration takes, with padding where it has text."""
    generator = torch.Generator().manual_seed(seed)
    if hasattr(config, "image_size"):
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(batch, config.num_channels, height, width, generator=generator)}
    tokens = min(tokens, config.max_position_embeddings)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[1:, tokens - tokens // 4 :] = 0
    ids = torch.randint(0, config.vocab_size, (batch, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}
