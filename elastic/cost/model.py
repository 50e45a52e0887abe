"""The analytic cost model: what any subnet of an architecture costs, computed without weights."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.cost.cost import Cost, InputShapes
from elastic.errors import ElasticError
from elastic.families import Family
from elastic.nested import active, get_elastic, make_elastic, meta_model
from elastic.space import SearchSpace, Subnet, check_subnet


class CostModel:
    """Predicts the cost of any subnet of one architecture at one input shape.

    FLOPs and parameters of the layers follow from formulas in the FFN width and the heads of each.
    What lies outside of the layers (embeddings, pooler, head) does not change with the subnet, and
    is counted once with `torch.utils.flop_counter` on the meta device. Activation memory is traced
    there, once for each distinct layer choice: a layer's peak depends on no other layer's choice.

    Shapes: ``B`` batch, ``S`` tokens in the layers, ``D`` hidden size, ``K`` head size.
    """

    def __init__(self, model_class: type[PreTrainedModel], config: PreTrainedConfig, input_shapes: InputShapes) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"
        self.input_shapes = {name: tuple(shape) for name, shape in input_shapes.items()}
        self._model = make_elastic(meta_model(model_class, config), SearchSpace()).eval()
        elastic = get_elastic(self._model)
        self._family: Family = elastic.family
        self._dims = elastic.dims
        self._full = elastic.resolved.largest
        self._head_dim = elastic.family.head_dim(config)
        self._element_bytes = (getattr(config, "dtype", None) or torch.float32).itemsize
        self._layer = elastic.family.find_layers(self._model)[1][0]
        self._batch, self._tokens = self._trace_layer_input()
        # A search asks for thousands of subnets that are made of few distinct layers.
        self._layer_flops = functools.cache(lambda ffn, heads: self._attention_flops(heads) + self._mlp_flops(ffn))
        self._layer_params = functools.cache(self._count_layer_params)
        self._traced_peak = functools.cache(self._trace_peak)
        self._outside_flops = self._traced_flops() - self._layers_flops(self._full)
        self._total_params = sum(p.numel() for p in self._model.parameters())

    @classmethod
    def of(cls, model: PreTrainedModel, input_shapes: InputShapes) -> CostModel:
        """Return the cost model of a model's architecture; the model itself is not used."""
        return cls(type(model), model.config, input_shapes)

    def cost(self, subnet: Subnet) -> Cost:
        """Return the cost of one forward pass of ``subnet``.

        Raises:
            SpaceError: if the model cannot run the subnet.
        """
        check_subnet(subnet, self._dims)
        params = self._params(subnet)
        return Cost(
            flops=self._outside_flops + self._layers_flops(subnet),
            params=params,
            weight_bytes=params * self._element_bytes,
            activation_bytes=self._activation_bytes(subnet),
            input_shapes=self.input_shapes,
        )

    # FLOPs

    def _layers_flops(self, subnet: Subnet) -> int:
        return sum(self._layer_flops(ffn, heads) for ffn, heads in zip(subnet.ffn, subnet.heads, strict=True))

    def _attention_flops(self, heads: int) -> int:
        projected = sum(self._projection_rows(p.shared_by_group, heads) * self._linear(p.path).in_features
                        for p in self._family.head_inputs)  # fmt: skip
        projected += heads * self._head_dim * self._linear(self._family.head_output).out_features
        scores_and_values = 2 * heads * self._tokens * self._head_dim
        return 2 * self._batch * self._tokens * (projected + scores_and_values)

    def _mlp_flops(self, ffn: int) -> int:
        per_neuron = sum(self._linear(path).in_features for path in self._family.ffn_inputs)
        per_neuron += self._linear(self._family.ffn_output).out_features
        return 2 * self._batch * self._tokens * ffn * per_neuron

    def _projection_rows(self, shared_by_group: bool, heads: int) -> int:
        return (heads // self._dims.heads_per_group if shared_by_group else heads) * self._head_dim

    # Parameters

    def _params(self, subnet: Subnet) -> int:
        full_layer = self._layer_params(self._dims.ffn, self._dims.heads)
        layers = sum(self._layer_params(ffn, heads) for ffn, heads in zip(subnet.ffn, subnet.heads, strict=True))
        return self._total_params - full_layer * self._dims.num_layers + layers

    def _count_layer_params(self, ffn: int, heads: int) -> int:
        if not ffn and not heads:
            return 0
        sublayers = [*self._family.skip_attention, *self._family.skip_mlp]
        outside = _num_params(self._layer) - sum(_num_params(self._layer.get_submodule(path)) for path in sublayers)
        return outside + self._attention_params(heads) + self._mlp_params(ffn)

    def _attention_params(self, heads: int) -> int:
        if not heads:
            return 0
        rows = {p.path: self._projection_rows(p.shared_by_group, heads) for p in self._family.head_inputs}
        return self._sublayer_params(
            self._family.skip_attention, rows, self._family.head_output, heads * self._head_dim
        )

    def _mlp_params(self, ffn: int) -> int:
        if not ffn:
            return 0
        rows = dict.fromkeys(self._family.ffn_inputs, ffn)
        return self._sublayer_params(self._family.skip_mlp, rows, self._family.ffn_output, ffn)

    def _sublayer_params(self, modules: Mapping[str, Any], rows: Mapping[str, int], output: str, columns: int) -> int:
        total = sum(_num_params(self._layer.get_submodule(path)) for path in modules)
        for path, kept in rows.items():
            linear = self._linear(path)
            total -= (linear.out_features - kept) * (linear.in_features + (linear.bias is not None))
        linear = self._linear(output)
        return total - (linear.in_features - columns) * linear.out_features

    def _linear(self, path: str) -> nn.Linear:
        return self._layer.get_submodule(path)  # type: ignore[return-value]

    # Traces on the meta device

    def _forward(self) -> None:
        inputs = {
            name: torch.zeros(shape, device="meta", dtype=torch.float32 if name == "pixel_values" else torch.int64)
            for name, shape in self.input_shapes.items()
        }
        if self._model.can_generate():
            # Without a mask, decoders look into the positions for packed sequences, which the meta device has not got.
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            try:
                self._model(**inputs, **({"use_cache": False} if self._caches else {}))
            except (TypeError, ValueError, RuntimeError) as error:
                shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in self.input_shapes.items())
                raise ElasticError(f"the model does not take the input shape {shapes}: {error}") from None

    @property
    def _caches(self) -> bool:
        return self._model.can_generate()

    def _trace_layer_input(self) -> tuple[int, int]:
        seen: list[torch.Size] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["hidden_states"]).shape)

        handle = self._layer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self._forward()
        finally:
            handle.remove()
        return int(seen[0][0]), int(seen[0][1])

    def _traced_flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self._forward()
        return int(counter.get_total_flops())

    def _activation_bytes(self, subnet: Subnet) -> int:
        choices = [(subnet.ffn[layer], subnet.heads[layer]) for layer in subnet.kept_layers]
        return max(self._traced_peak(choice, is_first=index == 0) for index, choice in enumerate(choices))

    def _trace_peak(self, choice: tuple[int, int], *, is_first: bool) -> int:
        """Trace a model of one layer with this choice, or of two: beside later layers, the embeddings stay alive."""
        num_kept = 1 if is_first else 2
        num_skipped = self._dims.num_layers - num_kept
        ffn, heads = choice
        subnet = Subnet(ffn=(ffn,) * num_kept + (0,) * num_skipped, heads=(heads,) * num_kept + (0,) * num_skipped)
        with active(self._model, subnet):
            return peak_activation_bytes(self._forward, self._model)


def _num_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operations create, for as long as they live."""

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen = ignored

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.live_bytes -= size
        self._seen.discard(key)


def peak_activation_bytes(forward: Callable[[], Any], model: nn.Module) -> int:
    """Return the largest number of bytes of activations alive at once while ``forward`` runs."""
    owned = [*model.parameters(), *model.buffers()]
    with _LiveTensors({tensor.untyped_storage()._cdata for tensor in owned}) as tracker:
        forward()
    return tracker.peak_bytes
