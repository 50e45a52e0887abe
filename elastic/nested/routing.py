"""Routers: small heads that decide, for each sequence, which sub-layers compute.

MindSkip of Router-Tuning (arXiv 2410.13184), with a dense mask in training: a gate that is off still learns.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from elastic.errors import CheckpointError, ElasticError, SpaceError
from elastic.nested.active import ActiveSubnet, get_elastic
from elastic.nested.gates import GateGradient, GateKey, RoutedBlock, RoutedPass, Trace, What

ROUTERS_NAME = "routers.safetensors"
_MODULE = "elastic_routers"
_PREFIX = f"{_MODULE}."


@dataclass(frozen=True)
class Routing:
    """Which sub-layers of a model have a router."""

    what: What
    """``attention``, ``mlp``, or ``block``: one gate for both of a layer."""
    layers: tuple[int, ...]
    threshold: float = 0.5
    """A sub-layer computes where its router's score, in (0, 1), is at least this; may be another at inference."""
    initial_bias: float = 1.0
    """Routers start with the score ``sigmoid(initial_bias)`` for all inputs: on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.what not in get_args(What):
            raise SpaceError(f"routers of '{self.what}' are unknown; choose {', '.join(get_args(What))}.")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise SpaceError(f"the routed layers {list(self.layers)} must be one or more, each once.")
        if not 0.0 < self.threshold < 1.0:
            raise SpaceError(f"the threshold of routers is {self.threshold}, and must lie between 0 and 1.")

    @property
    def keys(self) -> tuple[GateKey, ...]:
        """The gates."""
        return tuple(GateKey(self.what, layer) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Routing:
        """Read the JSON form.

        Raises:
            SpaceError: if a value is missing, unknown or not possible.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise SpaceError(f"{dict(data)!r} does not say which sub-layers have routers: {error}.") from None


class Router(nn.Linear):
    """One gate's score: from pooled inputs ``(batch, width)`` to ``(batch,)`` in (0, 1)."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the sigmoid of a linear map, in float32 also under autocast."""
        weight = self.weight[0, : pooled.shape[-1]].float()
        return torch.sigmoid((pooled * weight).sum(-1) + self.bias.float())


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Return all layers but the last, which the paper leaves alone."""
    return tuple(range(max(1, num_layers - 1)))


def add_routers(model: PreTrainedModel, routing: Routing) -> PreTrainedModel:
    """Give an elastic model routers, in place of any that it has, and return it.

    They are parameters of the model, so that a Trainer trains them, but ``save_pretrained`` does not write them, and
    nothing is routed outside of `routed`.

    Raises:
        SpaceError: if a layer does not exist.
        ElasticError: if the model is not elastic.
    """
    elastic = get_elastic(model)
    for layer in routing.layers:
        if not 0 <= layer < elastic.dims.num_layers:
            raise SpaceError(
                f"layer {layer} cannot have a router; the model has layers 0 to {elastic.dims.num_layers - 1}."
            )
    routers = nn.ModuleDict()
    for key in routing.keys:
        router = routers[str(key)] = Router(elastic.dims.hidden, 1, device=model.device)
        nn.init.zeros_(router.weight)
        nn.init.constant_(router.bias, routing.initial_bias)
    if elastic.routing is None:
        _register_hooks(model, elastic.active)
    setattr(model, _MODULE, routers)
    ours = {f"{_PREFIX}{name}" for name in routers.state_dict()}
    stock = {name for name in model._keys_to_ignore_on_save or () if not name.startswith(_PREFIX)}
    model._keys_to_ignore_on_save = stock | ours
    model._elastic = dataclasses.replace(elastic, routing=routing)  # type: ignore[assignment]
    return model


def _register_hooks(model: PreTrainedModel, active: ActiveSubnet) -> None:
    """Begin and end a routed pass with each call of the body, from wherever it comes."""
    names = list(inspect.signature(model.base_model.forward).parameters)
    index = names.index("attention_mask") if "attention_mask" in names else None
    body = model.base_model
    body.register_forward_pre_hook(functools.partial(_begin, active, index), with_kwargs=True)
    body.register_forward_hook(functools.partial(_end, active), always_call=True)


def _begin(
    active: ActiveSubnet, index: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    block = active.routed
    if block is None:
        return
    mask = kwargs.get("attention_mask") if index is not None else None
    if mask is None and index is not None and len(args) > index:
        mask = args[index]
    dense = torch.is_grad_enabled() if block.dense is None else block.dense
    active.routed_pass = RoutedPass(block, mask, dense)


def _end(active: ActiveSubnet, module: nn.Module, args: Any, output: Any) -> None:
    active.routed_pass = None


def get_routers(model: nn.Module) -> nn.ModuleDict:
    """Return the routers of a model, looking through wrappers.

    Raises:
        ElasticError: if it has none.
    """
    inner = model
    while not hasattr(inner, "_elastic"):
        get_elastic(inner)  # Says what is wrong where nothing is wrapped.
        inner = getattr(inner, "module", None) or inner._orig_mod  # type: ignore[assignment]
    routers = getattr(inner, _MODULE, None)
    if routers is None:
        raise ElasticError("this model has no routers; train some with a recipe that has a 'routers' section.")
    return routers  # type: ignore[no-any-return]


@contextmanager
def routed(
    model: nn.Module,
    threshold: float | None = None,
    *,
    dense: bool | None = None,
    gradient: GateGradient = "straight_through",
) -> Iterator[Trace]:
    """Let the routers decide what ``model`` computes when this thread calls it inside the ``with`` block.

    Each sub-layer that has a router computes for the rows of the batch whose score reaches the threshold; the others
    pass their input on. The rows agree with what they would be alone. With a key-value cache the decision is made
    when the prompt is read (its first part, if it comes in parts), and stays with the cache.

    Args:
        model: an elastic model with routers (see `add_routers`).
        threshold: in (0, 1): the lower, the more is computed; by default the one that was trained with.
        dense: compute all rows and multiply by the gates, so that gates that are off learn too; by default when
            gradients are recorded. Otherwise the rows that are off are not computed.
        gradient: how the loss reaches routers through the dense mask. ``interpolated`` draws some gates at random, so
            that outputs are for training only; see `elastic.nested.gates.GateGradient`.

    Yields:
        What the gates decide, as it happens.

    Raises:
        ElasticError: if the model has no routers, or the gradient is unknown.
        SpaceError: if the threshold is not between 0 and 1.
    """
    if gradient not in get_args(GateGradient):
        raise ElasticError(f"the gradient '{gradient}' of routers is not one of {', '.join(get_args(GateGradient))}.")
    routers, elastic = get_routers(model), get_elastic(model)
    assert elastic.routing is not None
    routing = elastic.routing if threshold is None else dataclasses.replace(elastic.routing, threshold=threshold)
    trace = Trace()
    heads: dict[GateKey, Any] = {key: routers[str(key)] for key in routing.keys}
    with elastic.active.route(RoutedBlock(heads, routing.threshold, dense, trace, gradient)):
        yield trace


# Files


def router_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a model's routers as their file holds them."""
    return {name: tensor.detach().contiguous() for name, tensor in get_routers(model).state_dict().items()}


def write_routers(model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write ``routers.safetensors``, from the model or from a state dict of it."""
    weights = router_weights(model)
    gathered = {k.removeprefix(_PREFIX): v for k, v in (state_dict or {}).items() if k.startswith(_PREFIX)}
    save_file({name: gathered.get(name, tensor).cpu() for name, tensor in weights.items()}, folder / ROUTERS_NAME)


def read_routers(model: nn.Module, folder: Path) -> None:
    """Load ``routers.safetensors`` into a model that has such routers.

    Raises:
        CheckpointError: if the file is missing, or of other routers.
    """
    path = folder / ROUTERS_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {ROUTERS_NAME}; copy the whole checkpoint again.")
    try:
        get_routers(model).load_state_dict(load_file(path))
    except Exception as error:
        raise CheckpointError(f"{path} does not hold the routers of this model: {error}") from None
