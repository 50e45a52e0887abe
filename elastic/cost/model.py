"""The analytic cost model: what any subnet of an architecture costs, computed without weights."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from elastic.cost.cost import Cost, InputShapes
from elastic.cost.latency import LatencyModel
from elastic.cost.latency_table import LatencyTable
from elastic.cost.params import count_layer_params
from elastic.errors import ElasticError
from elastic.families import TOKEN_INPUTS, Family, get_family
from elastic.nested import (
    RowNested,
    Stream,
    active,
    complete_first_layer,
    config_of_layers,
    get_elastic,
    make_elastic,
    meta_model,
)
from elastic.portable import narrow_stream
from elastic.space import SearchSpace, Subnet, check_subnet


class CostModel:
    """Predicts the cost of any subnet of one architecture at one input shape.

    FLOPs are linear in the FFN width and in the heads, and the sub-layers do not influence each
    other: three forward passes of one layer on the meta device, counted with
    `torch.utils.flop_counter`, give those of any subnet, and those outside of the layers
    (embeddings, pooler, head). Parameters are counted once for each layer, by sub-layer and unit.
    Activation memory is traced once for each distinct choice and kind of layer: a layer's peak
    depends on no other layer's choice. All of this is done for each hidden size that is asked for.
    """

    latency: LatencyModel | None = None
    """Predicts latency and energy, where there is a table: see `with_table`."""
    _past = 0
    """Tokens that are cached before the pass."""

    def __init__(
        self,
        model_class: type[PreTrainedModel],
        config: PreTrainedConfig,
        input_shapes: InputShapes,
        *,
        hidden: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Trace an architecture, with its residual stream cut to ``hidden`` dimensions if given.

        Memory is that of parameters and activations of ``dtype``; by default of the configuration's.
        """
        self._hidden = hidden
        self.input_shapes = {name: tuple(shape) for name, shape in input_shapes.items()}
        self._model_class, self._config = model_class, copy.deepcopy(config)
        self._family = get_family(config)
        dtype = dtype or getattr(config, "dtype", None) or torch.float32
        # Saving a model leaves the name of the type in its configuration.
        self._dtype: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        num_layers = self._family.dims(config).num_layers
        self._model = self._of_layers(tuple(range(num_layers)))
        elastic = get_elastic(self._model)
        self._dims = elastic.dims
        layers = elastic.family.find_layers(self._model)[1]
        self._layer_params = [count_layer_params(layer, elastic.family, config) for layer in layers]
        self._outside_params = _num_params(self._model) - _num_params(layers)
        self._types, self._kinds = _layer_kinds(layers, elastic.family, config)
        # A search asks for thousands of subnets that are made of few distinct layers.
        self._traced_peak = functools.cache(self._trace_peak)
        self._cut_model = functools.cache(self._of_layers)
        self._at_hidden = functools.cache(self._narrowed)
        self._trace_flops()

    @classmethod
    def of(cls, model: PreTrainedModel, input_shapes: InputShapes) -> CostModel:
        """Return the cost model of a model's architecture and data type; its weights are not used."""
        return cls(type(model), model.config, input_shapes, dtype=model.dtype)

    def cost(self, subnet: Subnet) -> Cost:
        """Return the cost of one forward pass of ``subnet``.

        Raises:
            SpaceError: if the model cannot run the subnet.
            BudgetError: if a latency table does not tell what the subnet needs.
        """
        check_subnet(subnet, self._dims)
        cost = self._cost(subnet) if subnet.hidden == self._hidden else self._at_hidden(subnet.hidden).cost(subnet)
        return cost if self.latency is None else self.latency.add_to(cost, subnet)

    def with_table(self, table: LatencyTable) -> CostModel:
        """Return this model with predictions of latency, and of energy where the table has it.

        Raises:
            BudgetError: if the table was measured at other input sizes.
        """
        predicting = copy.copy(self)
        predicting.latency = LatencyModel.fit(table, self.input_shapes, self._past)
        return predicting

    def without_table(self) -> CostModel:
        """Return this model without predictions of latency and energy: of any subnet, also where no table tells."""
        plain = copy.copy(self)
        plain.latency = None
        return plain

    def _cost(self, subnet: Subnet) -> Cost:
        choices = zip(self._layer_params, subnet.ffn, subnet.heads, strict=True)
        params = self._outside_params + sum(layer.count(ffn, heads) for layer, ffn, heads in choices)
        return Cost(
            flops=self._flops(subnet),
            params=params,
            weight_bytes=params * self._dtype.itemsize,
            activation_bytes=self._activation_bytes(subnet),
            input_shapes=self.input_shapes,
        )

    def _narrowed(self, hidden: int | None) -> CostModel:
        """Return the cost model of the same architecture at another hidden size."""
        return CostModel(self._model_class, self._config, self.input_shapes, hidden=hidden, dtype=self._dtype)

    # FLOPs

    def _flops(self, subnet: Subnet) -> int:
        # Exact: the FLOPs of a full sub-layer are a multiple of its units.
        mlp = self._mlp_flops * sum(subnet.ffn) // self._dims.ffn
        attention = self._attention_flops * sum(subnet.heads) // self._dims.heads
        return self._outside_flops + mlp + attention

    def _trace_flops(self) -> None:
        ffn, heads = self._dims.ffn, self._dims.heads
        both, mlp, attention = (self._count_flops(*choice) for choice in ((ffn, heads), (ffn, 0), (0, heads)))
        self._attention_flops, self._mlp_flops = both - mlp, both - attention
        self._outside_flops = both - self._attention_flops - self._mlp_flops

    def _count_flops(self, ffn: int, heads: int) -> int:
        subnet = _only({0: (ffn, heads)}, self._dims.num_layers)
        with active(self._model, subnet), FlopCounterMode(display=False) as counter:
            self._forward(self._model)
        return int(counter.get_total_flops())

    # Traces on the meta device

    def _forward(self, model: PreTrainedModel) -> None:
        inputs = {
            name: torch.zeros(shape, device="meta", dtype=torch.int64 if name in TOKEN_INPUTS else self._dtype)
            for name, shape in self.input_shapes.items()
        }
        if model.can_generate():
            # Without a mask, decoders look into the positions for packed sequences, which the meta device has not got.
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            try:
                self._pass(model, inputs)
            except (TypeError, ValueError, RuntimeError) as error:
                shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in self.input_shapes.items())
                raise ElasticError(f"the model does not take the input shape {shapes}: {error}") from None

    def _pass(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
        model(**inputs, **({"use_cache": False} if model.can_generate() else {}))

    def _of_layers(self, layers: tuple[int, ...]) -> PreTrainedModel:
        """Build the full model, or one that has only these of its layers, without weights."""
        model = meta_model(self._model_class, config_of_layers(self._family, self._config, layers))
        if layers[0]:
            complete_first_layer(self._family.find_layers(model)[1][0], self._family)
        if self._hidden is not None:
            stream = Stream.of(self._family, self._model_class, self._config)
            path = self._family.layers
            narrow_stream(model, {"hidden": self._hidden, "weights": stream.counts(path)}, path)
        model = make_elastic(model, SearchSpace()).eval()
        model.to(self._dtype)  # type: ignore[arg-type]
        model.set_attn_implementation("eager")
        return model

    def _activation_bytes(self, subnet: Subnet) -> int:
        return max(self.layer_peaks(subnet).values())

    def layer_peaks(self, subnet: Subnet) -> dict[int, int]:
        """Return the bytes of activations alive at once in each kept layer; the largest is the subnet's.

        A layer's peak depends on its own choice, and of the other layers only on which are kept.
        """
        if subnet.hidden != self._hidden:
            return self._at_hidden(subnet.hidden).layer_peaks(subnet)
        # Masks and position embeddings live outside of the layers, one for each type of layer that is there.
        types = frozenset(self._types[layer] for layer in subnet.kept_layers)
        return {
            layer: self._traced_peak(
                (subnet.ffn[layer], subnet.heads[layer]), self._kinds[layer], types, is_first=index == 0
            )
            for index, layer in enumerate(subnet.kept_layers)
        }

    def _trace_peak(self, choice: tuple[int, int], kind: int, types: frozenset[object], *, is_first: bool) -> int:
        """Trace one such layer, alone or after a tiny one: beside later layers, the embeddings stay alive."""
        layers = tuple(layer for layer, layer_type in enumerate(self._types) if layer_type in types)
        model = self._cut_model(layers)
        kinds = [self._kinds[layer] for layer in layers]
        traced = {kinds.index(kind): choice} if is_first else {0: (1, 0), kinds.index(kind, 1): choice}
        with active(model, _only(traced, len(layers))), _gathered_rows(model) as gathered:
            return peak_activation_bytes(lambda: self._forward(model), model, gathered)


def _only(choices: Mapping[int, tuple[int, int]], num_layers: int) -> Subnet:
    """Return the subnet that has only these layers, each with its FFN width and heads."""
    layers = [choices.get(layer, (0, 0)) for layer in range(num_layers)]
    return Subnet(ffn=tuple(ffn for ffn, _ in layers), heads=tuple(heads for _, heads in layers))


def _layer_kinds(layers: nn.ModuleList, family: Family, config: PreTrainedConfig) -> tuple[list[object], list[int]]:
    """Return the type that the configuration gives each layer, and numbers that are equal where layers are alike."""
    body = family.body_config(config)
    lists = [values for name in family.layer_lists if (values := getattr(body, name, None))]
    types: list[object] = [tuple(values[index] for values in lists) for index in range(len(layers))]
    kinds: dict[object, int] = {}
    numbers = []
    for layer, layer_type in zip(layers, types, strict=True):
        shapes = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
        numbers.append(kinds.setdefault((shapes, layer_type), len(kinds)))
    return types, numbers


@contextmanager
def _gathered_rows(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Gather the active rows of fused projections beforehand: in an extracted model they are weights of their own."""
    fused = [m for m in model.modules() if isinstance(m, RowNested) and len(m.nested.blocks) > 1 and m.nested.units]
    for module in fused:
        module.given_rows = module.active_rows()
    try:
        yield [tensor for module in fused for tensor in module.given_rows or () if tensor is not None]
    finally:
        for module in fused:
            module.given_rows = None


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


def peak_activation_bytes(forward: Callable[[], Any], model: nn.Module, weights: Iterable[torch.Tensor] = ()) -> int:
    """Return the largest number of bytes of activations alive at once while ``forward`` runs.

    ``weights`` are no activations, though they do not belong to the model.
    """
    owned = [*model.parameters(), *model.buffers(), *weights]
    with _LiveTensors({tensor.untyped_storage()._cdata for tensor in owned}) as tracker:
        forward()
    return tracker.peak_bytes
