"""How much the loss of each subnet counts in the weighted mean of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from elastic.space import Subnet
from elastic.training.passes import exit_of

Weights = Callable[[Subnet], float]


def even(subnet: Subnet) -> float:
    """Return 1: all subnets count the same."""
    return 1.0


def by_subnet(weights: Mapping[Subnet, float]) -> Weights:
    """Return weights that are given for some subnets, and 1 for all others."""
    return lambda subnet: weights.get(subnet, 1.0)


def by_exit(scale: float) -> Weights:
    """Return weights that grow with the depth of the exit (LayerSkip, arXiv 2404.16710, equation 5).

    ``scale · (1 + ... + e)`` for the exit after ``e`` layers, and ``e`` more for the last. The paper counts layers
    from 0, which gives the first exit no weight at all.
    """

    def weigh(subnet: Subnet) -> float:
        layers = exit_of(subnet)
        early = scale * layers * (layers + 1) / 2
        return early + layers if layers == subnet.num_layers else early

    return weigh
