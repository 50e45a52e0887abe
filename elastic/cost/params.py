"""The parameters of one layer at any FFN width and any number of heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from elastic.families import Block, Family, num_inputs, num_outputs


@dataclass(frozen=True)
class SublayerParams:
    """Parameters of a sub-layer: so many for each unit, and so many whatever its size."""

    fixed: int
    per_unit: int

    def count(self, units: int) -> int:
        """Return the parameters with this many units; none if the sub-layer is skipped."""
        return self.fixed + units * self.per_unit if units else 0


@dataclass(frozen=True)
class LayerParams:
    """Parameters of a layer: of both sub-layers, and of what belongs to neither."""

    attention: SublayerParams
    mlp: SublayerParams
    outside: int
    heads_per_group: int

    def count(self, ffn: int, heads: int) -> int:
        """Return the parameters with this width and these heads; none if the layer is skipped."""
        if not ffn and not heads:
            return 0
        return self.outside + self.attention.count(heads // self.heads_per_group) + self.mlp.count(ffn)


def count_layer_params(layer: nn.Module, family: Family, config: PreTrainedConfig) -> LayerParams:
    """Count the parameters of a full layer, by sub-layer."""
    dims = family.dims(config)
    group_width = dims.heads_per_group * family.head_dim(config)
    attention = _sublayer(layer, family.skip_attention, family.head_blocks(config), family.head_output, group_width)
    mlp = _sublayer(layer, family.skip_mlp, family.ffn_blocks(config), family.ffn_output, 1)
    outside = _num_params(layer) - attention.count(dims.kv_heads) - mlp.count(dims.ffn)
    return LayerParams(attention, mlp, outside, dims.heads_per_group)


def _sublayer(
    layer: nn.Module, modules: Mapping[str, object], blocks: Mapping[str, tuple[Block, ...]], output: str, columns: int
) -> SublayerParams:
    per_unit = columns * num_outputs(layer.get_submodule(output))
    for path, parts in blocks.items():
        linear = layer.get_submodule(path)
        per_unit += sum(part.size for part in parts) * (num_inputs(linear) + (linear.bias is not None))
    units = next(iter(blocks.values()))[0].num_units
    total = sum(_num_params(layer.get_submodule(path)) for path in modules)
    return SublayerParams(fixed=total - units * per_unit, per_unit=per_unit)


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
