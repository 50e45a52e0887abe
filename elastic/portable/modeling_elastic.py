"""Models of transformers whose layers have sizes of their own: fewer heads, a narrower FFN, or no attention or MLP.

Elastic (elastic-transformers) cut this checkpoint out of a larger model, and put this file, which needs only torch and
transformers, beside it. The model is built by the stock class of transformers, and then each layer gets its sizes;
nothing else changes. ``config.json`` says how:

- ``per_layer_config``: the sizes of each layer, in transformers' own format, with ``skip`` for what is left out;
- ``elastic``: where these sizes are to be found in a layer of this architecture. All paths lie inside one layer.
    - ``layers``: the path of the list of layers inside the base model;
    - ``config_part``: the part of the configuration that has ``per_layer_config``, where it has parts;
    - ``outputs``, ``inputs``: output and input features of linear layers, as sums of sizes times numbers:
      ``{"self_attn.q_proj": {"num_attention_heads": 64}}`` has 64 outputs for each head;
    - ``attributes``: numbers that modules read while they run, likewise; ``x.config.y`` is in the configuration of x;
    - ``skip``: for each sub-layer, its modules and what a `SkippedModule` returns in their place;
    - ``stream``, where the hidden size is smaller, too: that ``hidden`` size, the ``fields`` of the configuration that
      say it, and for each of the ``weights`` how many times it lies along which dimensions;
    - ``first_layer``: modules that the stock model's first layer does without, each with one of the same kind.

Every configuration and model class of transformers is found here by its name: ``modeling_elastic.BertModel``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

_made: dict[type, Any] = {}
"""The subclass of each stock class: one, so that ``isinstance`` and pickle work."""


def __getattr__(name: str) -> type:
    base = None if name.startswith("_") else getattr(transformers, name, None)
    if isinstance(base, type) and issubclass(base, PreTrainedConfig):
        return config_class(base)
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return model_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return a subclass of a stock configuration that reads and writes ``per_layer_config`` as ``layer_sizes``.

    All other fields describe a model of equal layers, so that whatever reads them goes on to work.
    """
    if base in _made:
        return _made[base]

    def init(self: Any, **fields: Any) -> None:
        part = (fields.get("elastic") or {}).get("config_part")
        described = dict(fields[part]) if part else fields
        layers = described.pop("per_layer_config", None)
        if part:
            fields[part] = described
        base.__init__(self, **fields)
        if layers:
            self.layer_sizes = [dict(sizes) for _, sizes in sorted(layers.items(), key=lambda item: int(item[0]))]

    def to_dict(self: Any) -> dict[str, Any]:
        data = base.to_dict(self)
        if layers := data.pop("layer_sizes", None):
            part = self.elastic.get("config_part")
            digits = len(str(len(layers) - 1))
            described = data[part] if part else data
            described["per_layer_config"] = {str(i).zfill(digits): sizes for i, sizes in enumerate(layers)}
        return data

    # The stock name: transformers finds tokenizers and inner models by it. With _auto_class, saving copies this file.
    body = {"__init__": init, "to_dict": to_dict, "_auto_class": "AutoConfig", "__module__": __name__}
    return _made.setdefault(base, type(base.__name__, (base,), body))


def model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a subclass of a stock model whose layers have the sizes that the configuration says."""
    if base in _made:
        return _made[base]

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stream = (getattr(config, "elastic", None) or {}).get("stream")
        if stream:
            # It is going to say another hidden size, and whoever gave it may build with it again.
            config = copy.deepcopy(config)
        base.__init__(self, config, *args, **kwargs)
        resize_layers(self, config)
        if stream:
            narrow_stream(self, stream, config.elastic["layers"])
            self.whole_stream = _state_fields(config, dict.fromkeys(stream["fields"], stream["hidden"]))

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        whole = getattr(self, "whole_stream", {})
        # Configurations are checked when they are saved, and may refuse the slice with the heads that they say.
        narrow = _state_fields(self.config, whole)
        try:
            return base.save_pretrained(self, *args, **kwargs)
        finally:
            _state_fields(self.config, narrow)

    body = {
        "__init__": init,
        "save_pretrained": save_pretrained,
        "config_class": config_class(base.config_class),  # type: ignore[arg-type]
        "__module__": __name__,
    }
    return _made.setdefault(base, type(base.__name__, (base,), body))


def resize_layers(model: PreTrainedModel, config: Any) -> None:
    """Give all layers of a stock model their sizes.

    Raises:
        ValueError: if the configuration does not say them.
    """
    table, all_sizes = getattr(config, "elastic", None), getattr(config, "layer_sizes", None)
    if not table or not all_sizes:
        raise ValueError(
            "the configuration does not say the sizes of the layers: 'elastic' or 'per_layer_config' lacks."
        )
    layers: Any = model.base_model.get_submodule(table["layers"])
    if len(layers) != len(all_sizes):
        raise ValueError(f"the model has {len(layers)} layers, and per_layer_config the sizes of {len(all_sizes)}.")
    for path, like in table["first_layer"].items():
        layers[0].set_submodule(path, copy.deepcopy(layers[0].get_submodule(like)))
    for layer, sizes in zip(layers, all_sizes, strict=True):
        resize_layer(layer, sizes, table)


def resize_layer(layer: nn.Module, sizes: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    """Give one stock layer its sizes, and take out the sub-layers that are skipped."""

    def size_of(multiples: Mapping[str, float]) -> int:
        return round(sum(sizes[name] * number for name, number in multiples.items()))

    # A size of 0 belongs to a sub-layer that is skipped.
    for path, multiples in table["outputs"].items():
        if size := size_of(multiples):
            _resize(layer, path, outputs=size)
    for path, multiples in table["inputs"].items():
        if size := size_of(multiples):
            _resize(layer, path, inputs=size)
    for path, multiples in table["attributes"].items():
        if size := size_of(multiples):
            _set_attribute(layer, path, size)
    for sublayer in sizes.get("skip", ()):
        for path, returns in table["skip"][sublayer].items():
            layer_idx = getattr(layer.get_submodule(path), "layer_idx", None)
            layer.set_submodule(path, SkippedModule(returns, layer_idx))


def narrow_stream(model: PreTrainedModel, stream: Mapping[str, Any], layers: str) -> None:
    """Give a model the sizes of a narrower residual stream, in place; the new weights are not set."""
    new: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            inside = f"{path}.{name}".lstrip(".").removeprefix(f"{model.base_model_prefix}.")
            if inside.startswith(f"{layers}."):
                inside = f"{layers}.*.{inside[len(layers) + 1 :].partition('.')[2]}"
            if inside not in stream["weights"]:
                continue
            if id(parameter) not in new:  # tied weights stay tied
                shape = list(parameter.shape)
                for dim, count in stream["weights"][inside]:
                    shape[dim] = count * stream["hidden"]
                empty = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
                new[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module.register_parameter(name, new[id(parameter)])
        _state_sizes(module)


def _state_sizes(module: nn.Module) -> None:
    """Let a module say the sizes that its weights have."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = weight.shape
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1:
        module.out_channels, module.in_channels = weight.shape[:2]


def _state_fields(config: Any, values: Mapping[str, int]) -> dict[str, int]:
    """Let a configuration say these values; return what it said before."""
    part = (getattr(config, "elastic", None) or {}).get("config_part")
    described = getattr(config, part) if part else config
    before = {name: getattr(described, name) for name in values}
    for name, value in values.items():
        setattr(described, name, value)
    return before


def _resize(layer: nn.Module, path: str, *, outputs: int | None = None, inputs: int | None = None) -> None:
    old: Any = layer.get_submodule(path)
    device, dtype = old.weight.device, old.weight.dtype
    if isinstance(old, Conv1D):
        with torch.device(device):
            new: nn.Module = Conv1D(outputs or old.nf, inputs or old.nx).to(dtype)
    else:
        sizes = (inputs or old.in_features, outputs or old.out_features)
        new = nn.Linear(*sizes, bias=old.bias is not None, device=device, dtype=dtype)
    layer.set_submodule(path, new)


def _set_attribute(layer: nn.Module, path: str, value: int) -> None:
    owner, _, name = path.rpartition(".")
    module: Any = layer.get_submodule(owner.removesuffix(".config"))
    if owner.endswith(".config"):
        module.config = ConfigView(module.config, {name: value})
    else:
        setattr(module, name, value)


class ConfigView:
    """A configuration in which some fields have other values; all else is read from the original."""

    def __init__(self, config: Any, fields: dict[str, int]) -> None:
        self._config = config
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fields = self.__dict__.get("_fields", {})
        # Not copied: transformers changes the attention implementation in the configuration of a live model.
        return fields[name] if name in fields else getattr(self.__dict__["_config"], name)


class SkippedModule(nn.Module):
    """Stands where a model has no module any more: no weights, no computation."""

    def __init__(self, returns: str, layer_idx: int | None = None) -> None:
        super().__init__()
        self.returns = returns
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what makes the layer pass its input on."""
        return skipped_output(self.returns, self.layer_idx, args, kwargs)


def skipped_output(returns: str, layer_idx: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module of a skipped sub-layer returns instead of computing.

    Attention with a key-value cache still records the new positions: see `_record_positions`.

    Args:
        returns: ``input``; ``residual``, its second argument; ``zero``, nothing to add; or one of these with no
            attention weights: ``attention_input``, ``attention_zero``.
        layer_idx: where the cache keeps this layer.
        args: what the module is called with.
        kwargs: the same.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if returns == "input":
        return hidden
    if returns == "residual":
        return args[1] if len(args) > 1 else kwargs["input_tensor"]
    # One zero with as many dimensions as the input: drop path draws a number for each example.
    zero = hidden.new_zeros((1,) * hidden.ndim)
    if returns == "zero":
        return zero
    cache = kwargs.get("past_key_values")
    if cache is not None and layer_idx is not None:
        _record_positions(cache, layer_idx, hidden)
    return (hidden if returns == "attention_input" else zero, None)


def _record_positions(cache: Any, layer_idx: int, hidden: torch.Tensor) -> None:
    """Count new positions in the cache of skipped attention, where transformers may look for their number.

    Keys are one number wide, because keys without width count as no tokens; values have no width. Where attention has
    run before, nothing is recorded: those positions are a draft's, and the model that it drafts for will compute them.
    """
    values = cache.layers[layer_idx].values if layer_idx < len(cache.layers) else None
    if values is not None and values.shape[-1]:
        return
    shape = (hidden.shape[0], 1, hidden.shape[1])
    cache.update(hidden.new_zeros((*shape, 1)), hidden.new_zeros((*shape, 0)), layer_idx)
