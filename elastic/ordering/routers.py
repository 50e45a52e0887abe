"""What trained routers do over calibration data: how much they use, at which threshold, and without them."""

from __future__ import annotations

import dataclasses

import torch
from transformers import PreTrainedModel

from elastic.errors import ElasticError, SpaceError
from elastic.nested import GateKey, Trace, active, evaluating, get_elastic, routed
from elastic.ordering.sites import Batches, run
from elastic.space import Subnet

HALVINGS = 20
"""Steps of the search for a threshold: to a millionth."""


def trace_routers(
    model: PreTrainedModel, batches: Batches, *, subnet: Subnet | None = None, threshold: float | None = None
) -> Trace:
    """Return what the routers of a model decide over calibration data.

    Args:
        model: an elastic model with routers.
        batches: calibration inputs.
        subnet: which runs; the largest by default.
        threshold: by default the one that was trained with.

    Raises:
        ElasticError: if the model has no routers, or nothing was decided.
    """
    with (
        active(model, subnet or get_elastic(model).resolved.largest),
        torch.inference_mode(),
        evaluating(model),
        routed(model, threshold, dense=False) as trace,
    ):
        for batch in batches:
            run(model, batch)
    if not trace.usage:
        raise ElasticError("the routers decided nothing: there is no calibration data, or the subnet skips all of it.")
    return trace


def threshold_for(model: PreTrainedModel, batches: Batches, capacity: float, *, subnet: Subnet | None = None) -> float:
    """Return the threshold at which the routers let the share ``capacity`` of sequences through, as nearly as they can.

    Found by bisection, one pass over the data for each step, because what later routers read follows from the gates
    before them. Of the thresholds that decide alike, the middle one is taken, so that other data is decided alike too.

    Raises:
        ElasticError: as `trace_routers`.
        SpaceError: if the capacity is not between 0 and 1.
    """
    _check_capacity(capacity)
    low, high, nearest, best = 0.0, 1.0, 2.0, 0.5
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        trace = trace_routers(model, batches, subnet=subnet, threshold=middle)
        distance = abs(trace.capacity - capacity)
        if distance < nearest:
            nearest, best = distance, _amid(trace, middle)
        if not distance:
            break
        low, high = (middle, high) if trace.capacity > capacity else (low, middle)
    return best


def _amid(trace: Trace, threshold: float) -> float:
    """Return the middle between the highest score below a threshold and the lowest that reaches it."""
    scores = torch.cat(list(trace.scores.values())).double()
    below, reaching = scores[scores < threshold], scores[scores >= threshold]
    low = float(below.max()) if len(below) else 0.0
    high = float(reaching.min()) if len(reaching) else 1.0
    return (low + high) / 2


def freeze_routers(
    model: PreTrainedModel, batches: Batches, capacity: float, *, subnet: Subnet | None = None
) -> Subnet:
    """Return the static subnet without the sub-layers that the routers use least over calibration data.

    Of ``n`` routed sub-layers, ``round(capacity · n)`` stay: those that most sequences compute; where as many do,
    those with the higher mean score.

    Args:
        model: an elastic model with routers.
        batches: calibration inputs.
        capacity: share of the routed sub-layers that stay.
        subnet: of which they are taken away; the largest by default.

    Raises:
        ElasticError: as `trace_routers`.
        SpaceError: if the capacity is not between 0 and 1, or nothing would stay.
    """
    _check_capacity(capacity)
    trace = trace_routers(model, batches, subnet=subnet)
    usage, scores = trace.usage, trace.scores
    rising = sorted(usage, key=lambda key: (usage[key], float(scores[key].double().mean())))
    leaving = rising[: len(rising) - round(capacity * len(rising))]
    return without(subnet or get_elastic(model).resolved.largest, leaving)


def without(subnet: Subnet, gates: list[GateKey]) -> Subnet:
    """Return the subnet without the sub-layers of these gates.

    Raises:
        SpaceError: if nothing would stay.
    """

    def kept(sizes: tuple[int, ...], what: str) -> tuple[int, ...]:
        gone = {key.layer for key in gates if key.what in (what, "block")}
        return tuple(0 if layer in gone else size for layer, size in enumerate(sizes))

    rest = dataclasses.replace(subnet, ffn=kept(subnet.ffn, "mlp"), heads=kept(subnet.heads, "attention"))
    if not rest.kept_layers:
        raise SpaceError("nothing would stay of the subnet; choose a larger capacity.")
    return rest


def _check_capacity(capacity: float) -> None:
    if not 0.0 <= capacity <= 1.0:
        raise SpaceError(f"the capacity is {capacity}, and must lie between 0 and 1.")
