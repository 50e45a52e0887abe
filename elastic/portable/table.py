"""What ``config.json`` says of a model whose layers differ: their sizes, and where these apply in its architecture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from elastic.families import Family, HeadSize
from elastic.portable import modeling_elastic
from elastic.space import Subnet

CODE_NAME = Path(modeling_elastic.__file__).name
"""The file of code that lies beside the weights of models whose layers differ."""


def make_portable(
    config: PreTrainedConfig,
    family: Family,
    universal: PreTrainedConfig,
    subnet: Subnet,
    stream: Mapping[str, list[list[int]]] | None = None,
) -> PreTrainedConfig:
    """Turn the stock configuration of a subnet's layers, in place, into one that says the sizes of each.

    Saved, it takes `modeling_elastic` along, by which transformers without Elastic loads the model.

    Args:
        config: of as many equal layers as the subnet keeps.
        family: the architecture.
        universal: the configuration of the universal model.
        subnet: what has been cut out of it.
        stream: where the residual stream lies in the weights (see `elastic.nested.Stream.counts`), where the subnet
            has a hidden size of its own.
    """
    stock = type(config)
    config.__class__ = modeling_elastic.config_class(stock)
    config.elastic = size_table(family, universal, subnet)
    if stream is not None and subnet.hidden is not None:
        # Building starts from the universal model's hidden size, from which other sizes follow.
        fields = list(family.hidden_fields(universal))
        config.elastic["stream"] = {"hidden": subnet.hidden, "fields": fields, "weights": stream}
    config.layer_sizes = layer_sizes(family, universal, subnet)
    config.auto_map = auto_map(stock)
    return config


def layer_sizes(family: Family, universal: PreTrainedConfig, subnet: Subnet) -> list[dict[str, Any]]:
    """Return the entries of ``per_layer_config``, one for each kept layer.

    Every layer has every size, 0 where a sub-layer is skipped: transformers refuses to build such a
    model, whereas a lone ``skip`` would be ignored, and missing weights made up.
    """
    dims, hidden_field = family.dims(universal), family.body_config(universal).attribute_map.get("hidden_size")
    entries = []
    for layer in subnet.kept_layers:
        ffn, heads = subnet.ffn[layer], subnet.heads[layer]
        entry: dict[str, Any] = {family.ffn_field: family.ffn_value(ffn, dims.hidden), family.heads_field: heads}
        if family.kv_heads_field:
            entry[family.kv_heads_field] = heads // dims.heads_per_group
        if subnet.hidden is not None:
            entry[hidden_field or "hidden_size"] = subnet.hidden
        if skipped := [name for name, size in (("attention", heads), ("mlp", ffn)) if not size]:
            entry["skip"] = skipped
        entries.append(entry)
    return entries


def size_table(family: Family, universal: PreTrainedConfig, subnet: Subnet) -> dict[str, Any]:
    """Return where the sizes of a layer apply: the ``elastic`` entry that `modeling_elastic` describes."""
    head_dim = family.head_dim(universal)
    kv_heads_field = family.kv_heads_field or family.heads_field
    neuron = family.body_config(universal).hidden_size if family.ffn_is_ratio else 1
    outputs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for projection in family.head_inputs:
        outputs[projection.path][kv_heads_field if projection.shared_by_group else family.heads_field] += head_dim
    for path in family.ffn_inputs:
        outputs[path][family.ffn_field] += neuron
    sizes = {
        HeadSize.HEADS: {family.heads_field: 1},
        HeadSize.KV_HEADS: {kv_heads_field: 1},
        HeadSize.WIDTH: {family.heads_field: head_dim},
    }
    return {
        "layers": family.layers,
        "config_part": family.config_part,
        "outputs": {path: dict(multiples) for path, multiples in outputs.items()},
        "inputs": {
            family.head_output: {family.heads_field: head_dim},
            family.ffn_output: {family.ffn_field: neuron},
        },
        "attributes": {path: sizes[size] for path, size in family.head_sizes.items()},
        "skip": {
            "attention": {path: skip.value for path, skip in family.skip_attention.items()},
            "mlp": {path: skip.value for path, skip in family.skip_mlp.items()},
        },
        "first_layer": dict(family.first_layer_lacks) if subnet.kept_layers[0] else {},
    }


def auto_map(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """Return which class of `modeling_elastic` each Auto class of transformers is to load."""
    found = {"AutoConfig": config_class.__name__}
    for name, auto_class in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto_class, "_model_mapping", None)
        if name.startswith("Auto") and mapping is not None and config_class in mapping:
            model_class = mapping[config_class]
            found[name] = (model_class[0] if isinstance(model_class, Sequence) else model_class).__name__
    module = Path(CODE_NAME).stem
    return {name: f"{module}.{class_name}" for name, class_name in found.items()}


def auto_class_of(model: PreTrainedModel) -> str:
    """Return the Auto class of transformers that loads models of this class; the class itself where none does."""
    name = type(model).__name__
    classes = auto_map(type(model.config))
    return next((auto for auto, target in classes.items() if target.endswith(f".{name}")), name)
