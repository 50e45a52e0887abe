"""Which subnet a model runs right now: kept on the model, for each thread, and always restored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from elastic.errors import ElasticError
from elastic.families import Family
from elastic.space import ModelDims, ResolvedSpace, SearchSpace, Subnet, check_subnet

if TYPE_CHECKING:
    from elastic.nested.gates import RoutedBlock, RoutedPass
    from elastic.nested.routing import Routing


class ActiveSubnet:
    """Holds the subnet that one model runs, separately for every thread; the full model by default.

    One instance is shared by all nested modules of one model. A copy of the model gets its own.
    """

    def __init__(self, full: Subnet) -> None:
        self._full = full
        self._local = threading.local()

    @property
    def current(self) -> Subnet:
        """The subnet that this thread runs."""
        return getattr(self._local, "subnet", self._full)

    @contextmanager
    def use(self, subnet: Subnet) -> Iterator[None]:
        """Run ``subnet`` in this thread inside the ``with`` block."""
        previous = self.current
        self._local.subnet = subnet
        try:
            yield
        finally:
            self._local.subnet = previous

    @property
    def resumed(self) -> torch.Tensor | None:
        """The residual stream with which this thread's forward passes leave the layers, instead of running them."""
        return getattr(self._local, "resumed", None)

    @contextmanager
    def resume_from(self, stream: torch.Tensor) -> Iterator[None]:
        """Let no layer run inside the ``with`` block: the last one returns ``stream``."""
        previous = self.resumed
        self._local.resumed = stream
        try:
            yield
        finally:
            self._local.resumed = previous

    @property
    def routed(self) -> RoutedBlock | None:
        """What this thread's `elastic.nested.routed` block asks for; None outside of one."""
        return getattr(self._local, "routed", None)

    @contextmanager
    def route(self, block: RoutedBlock) -> Iterator[None]:
        """Let routers decide in this thread inside the ``with`` block."""
        previous = self.routed
        self._local.routed = block
        try:
            yield
        finally:
            self._local.routed = previous

    @contextmanager
    def pin(self, subnet: Subnet, routed_pass: RoutedPass | None) -> Iterator[None]:
        """Run a layer with the subnet and the gates of its forward pass, which may be another thread's."""
        previous = self.current, self.routed_pass
        self._local.subnet, self._local.routed_pass = subnet, routed_pass
        try:
            yield
        finally:
            self._local.subnet, self._local.routed_pass = previous

    @property
    def routed_pass(self) -> RoutedPass | None:
        """The forward pass under routers that this thread runs now."""
        return getattr(self._local, "routed_pass", None)

    @routed_pass.setter
    def routed_pass(self, routed_pass: RoutedPass | None) -> None:
        self._local.routed_pass = routed_pass

    def __deepcopy__(self, memo: dict[int, Any]) -> ActiveSubnet:
        copied = memo[id(self)] = ActiveSubnet(self._full)
        return copied


@dataclass(frozen=True)
class Elastic:
    """What a model carries after `make_elastic`: its family, its space, and the subnet it runs."""

    family: Family
    space: SearchSpace
    resolved: ResolvedSpace
    active: ActiveSubnet
    routing: Routing | None = None
    """Which sub-layers have routers."""

    @property
    def dims(self) -> ModelDims:
        """The model's largest sizes."""
        return self.resolved.dims


def get_elastic(model: nn.Module) -> Elastic:
    """Return what `make_elastic` attached, looking through wrappers such as DistributedDataParallel.

    Raises:
        ElasticError: if the model is not elastic.
    """
    inner = model
    while not hasattr(inner, "_elastic"):
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if not isinstance(wrapped, nn.Module):
            raise ElasticError(f"this {type(model).__name__} is not elastic; call elastic.make_elastic(model, space).")
        inner = wrapped
    return inner._elastic  # type: ignore[return-value]


def is_elastic(model: nn.Module) -> bool:
    """Whether `make_elastic` made this very model elastic."""
    return hasattr(model, "_elastic")


@contextmanager
def active(model: nn.Module, subnet: Subnet) -> Iterator[None]:
    """Run ``subnet`` whenever this thread calls ``model`` inside the ``with`` block.

    Blocks nest, and the previous subnet returns even if the body raises. Other models and other
    threads are not affected. Activation checkpointing recomputes with the subnet of its forward
    pass, even after the block has ended.

    Raises:
        SpaceError: if the model cannot run the subnet (too wide, heads that do not divide, ...).
        ElasticError: if the model is not elastic.
    """
    elastic = get_elastic(model)
    check_subnet(subnet, elastic.dims)
    with elastic.active.use(subnet):
        yield


@contextmanager
def resumed_from(model: nn.Module, stream: torch.Tensor) -> Iterator[None]:
    """Let ``model`` do only what follows its layers inside the ``with`` block: final norm, head and loss.

    So an early exit returns what a model without the later layers would, whatever the architecture has behind them,
    and several exits share one pass through the layers.

    Args:
        model: an elastic model.
        stream: ``(batch, tokens, hidden)``: what the last layer would return.

    Raises:
        ElasticError: if the model is not elastic.
    """
    with get_elastic(model).active.resume_from(stream):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the ``with`` block; afterwards every module is in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
