"""Subnets that are preferred before any training, by a score that costs one backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from elastic.cost import CostModel, Limits
from elastic.ordering import score
from elastic.selection.optimal import predicted_best
from elastic.selection.predictor import Predictor
from elastic.space import ResolvedSpace, Subnet


def preferred_subnets(
    model: PreTrainedModel,
    space: ResolvedSpace,
    cost_model: CostModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    num_subnets: int,
) -> list[Subnet]:
    """Return the subnets that keep the most saliency, one for each of some parameter counts.

    PreNAS (arXiv 2304.14636): train only what a zero-cost score prefers. Its score is ``|weight · gradient|``, summed
    over the weights of each choice and balanced between matrices; here the saliency is that of a gate on each neuron
    and head (`elastic.ordering.score`, ``first_order``), each axis scaled to the same sum, and the choice of each layer
    is not made greedily but optimal for each parameter count.

    Args:
        model: an elastic model, before training.
        space: of which subnets.
        cost_model: counts their parameters.
        batches: a few inputs; no labels.
        num_subnets: how many parameter counts, evenly from the smallest subnet to the largest.
    """
    predictor = _saliency(model, space, batches)
    least, most = (cost_model.cost(subnet).params for subnet in (space.smallest, space.largest))
    counts = [least + (most - least) * index // (num_subnets - 1) for index in range(num_subnets)]
    found = [predicted_best(space, cost_model, Limits({"params": count}), predictor, 1) for count in counts]
    return list(dict.fromkeys(optimum.subnet for optima in found for optimum in optima))


def _saliency(model: PreTrainedModel, space: ResolvedSpace, batches: Iterable[Mapping[str, torch.Tensor]]) -> Predictor:
    """Predict of a subnet the saliency of what it leaves out, negative."""
    scores = score(model, "first_order", batches)
    total = {axis: sum(float(s.sum()) for (_, a), s in scores.items() if a == axis) for axis in ("ffn", "heads")}
    effects: dict[tuple[int, str, int], float] = {}
    for (layer, axis), units in scores.items():
        per_unit = 1 if axis == "ffn" else space.dims.heads_per_group
        for choice in (0, *getattr(space, axis)):
            left_out = float(units[choice // per_unit :].sum())
            effects[layer, axis, choice] = -left_out / max(total[axis], 1e-12)
    return Predictor(0.0, effects, error=0.0, rank_correlation=0.0, num_measured=0)
