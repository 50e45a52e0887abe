"""Importance of neurons and heads: which of them a narrow subnet should keep.

Every method gives each unit (a neuron, or the heads of a key-value group) a score; the larger, the later it
is dropped. Activations are summed up batch by batch, so memory does not grow with the calibration set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from scipy.linalg import lapack
from torch import nn
from transformers import PreTrainedModel

from elastic.errors import ElasticError
from elastic.families import Block, output_dim
from elastic.nested import evaluating
from elastic.ordering.permutation import positions
from elastic.ordering.sites import Axis, Batches, Site, find_sites, hooked, run, tokens

Method = Literal["magnitude", "activation", "first_order", "pivoted_qr", "reconstruction"]
METHODS: tuple[Method, ...] = get_args(Method)
RELATIVE_DAMPING = 1e-4
"""Added to the diagonal of a Gram matrix, as a share of its mean, where it is inverted."""
NEURON_STEPS = 128
"""In so many steps `reconstruction_order` removes the neurons of a layer."""
Scores = dict[tuple[int, Axis], torch.Tensor]
"""For ``(layer, axis)``, one score for each unit."""
Outputs = Callable[[Any, Any], torch.Tensor]
"""From what a model returns and its batch to the tensor that matters, such as logits or embeddings."""


def score(
    model: PreTrainedModel, method: Method, batches: Batches = (), *, outputs: Outputs | None = None, seed: int = 0
) -> Scores:
    """Return the importance of every neuron and head.

    - ``magnitude``: product of the L2 norms of the weights into and out of a unit; needs no data.
    - ``activation``: L2 norm of a unit's activations (Minitron, arXiv 2407.14679, section 2.2) times that of
      the weights out of it.
    - ``first_order``: change of the model's output when a unit is switched off, to first order
      (the gate gradient of DynaBERT, arXiv 2004.04037, section 3.1, for random directions of the output
      instead of a loss, so that it needs no labels).
    - ``pivoted_qr``: order of the pivots of a column-pivoted QR of the activations (STAT, arXiv 2406.00061).
    - ``reconstruction``: units leave one by one, each time the one whose loss changes the sub-layer's output
      least, the others compensating for it (structured optimal brain surgeon; ZipLM, arXiv 2302.04089,
      section 3.1).

    Args:
        model: any supported model; its full width is scored.
        method: one of `METHODS`.
        batches: calibration inputs; every method but ``magnitude`` needs them.
        outputs: for ``first_order``: what counts as the output; by default the first tensor returned.
        seed: for ``first_order``: of the random directions.

    Raises:
        ElasticError: if the method is unknown, or there are no batches, or activations are not finite.
    """
    if method == "magnitude":
        return {(site.layer, site.axis): _magnitude(site) for site in find_sites(model)}
    if method == "first_order":
        return _first_order(model, batches, outputs or (lambda returned, batch: returned[0]), seed)
    if method == "activation":
        return _activation(model, batches)
    if method in ("pivoted_qr", "reconstruction"):
        by_gram = pivoted_qr_order if method == "pivoted_qr" else reconstruction_order
        return {
            (site.layer, site.axis): _falling(by_gram(gram, weight_of(site.output), site.columns.size))
            for site, gram in grams(model, batches)
        }
    raise ElasticError(f"the ordering '{method}' is not one of {', '.join(METHODS)}.")


def weight_of(projection: nn.Module) -> torch.Tensor:
    """Return a copy of a projection's weight as ``(out, in)``, in float64."""
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]
    return (weight.T if output_dim(projection) else weight).detach().double().cpu()


def _column_norms(site: Site) -> torch.Tensor:
    return weight_of(site.output).square().sum(0).view(site.num_units, -1).sum(1).sqrt()


def _magnitude(site: Site) -> torch.Tensor:
    squares = torch.zeros(site.num_units, dtype=torch.float64)
    for path, blocks in site.inputs.items():
        projection = site.module.get_submodule(path)
        weight = weight_of(projection)
        for block in blocks:
            squares += weight[block.rows(block.num_units)].square().sum(1).view(block.num_units, -1).sum(1)
    return squares.sqrt() * _column_norms(site)


def _activation(model: PreTrainedModel, batches: Batches) -> Scores:
    sites = find_sites(model)
    sums = [torch.zeros(site.num_units, dtype=torch.float64) for site in sites]

    def add(index: int, activations: torch.Tensor) -> None:
        squares = activations.double().square().sum(0).cpu()
        sums[index] += squares.view(sites[index].num_units, -1).sum(1)

    _collect(model, sites, batches, add)
    return {(s.layer, s.axis): total.sqrt() * _column_norms(s) for s, total in zip(sites, sums, strict=True)}


def _first_order(model: PreTrainedModel, batches: Batches, outputs: Outputs, seed: int) -> Scores:
    sites = find_sites(model)
    sums = [torch.zeros(site.num_units, dtype=torch.float64) for site in sites]
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, torch.Tensor] = {}

    def keep(index: int, args: tuple[Any, ...]) -> None:
        # The input of the first layers has no history where nothing before it needs a gradient.
        if not args[0].requires_grad:
            args[0].requires_grad_()
        args[0].retain_grad()
        seen[index] = args[0]

    count = 0
    with evaluating(model), torch.enable_grad(), hooked([site.output for site in sites], keep):
        for batch in batches:
            count += 1
            output = outputs(run(model, batch), batch)
            direction = torch.randn(output.shape, generator=generator).to(output)
            gradients = torch.autograd.grad((output * direction).sum(), [seen[i] for i in range(len(sites))])
            for index, gradient in enumerate(gradients):
                # One gate a unit and example: its gradient sums over the tokens and the unit's columns.
                gate = (seen[index].detach() * gradient).flatten(1, -2).double().sum(1)
                gate = gate.view(len(gate), sites[index].num_units, -1).sum(2)
                sums[index] += gate.square().sum(0).cpu()
    check_calibration(count, sums)
    return {(site.layer, site.axis): total.sqrt() for site, total in zip(sites, sums, strict=True)}


def grams(model: PreTrainedModel, batches: Batches) -> list[tuple[Site, torch.Tensor]]:
    """Return ``(1/tokens) Σ a aᵀ`` of the activations before each output projection: ``(width, width)``, float64.

    Raises:
        ElasticError: if there are no batches, or an activation is not finite.
    """
    sites = find_sites(model)
    widths = [site.num_units * site.columns.size for site in sites]
    sums = [torch.zeros(width, width, dtype=torch.float64) for width in widths]
    counts = [0] * len(sites)

    def add(index: int, activations: torch.Tensor) -> None:
        values = activations.float()
        sums[index] += (values.T @ values).double().cpu()
        counts[index] += len(values)

    _collect(model, sites, batches, add)
    return [(site, total / count) for site, total, count in zip(sites, sums, counts, strict=True)]


def _collect(
    model: PreTrainedModel, sites: list[Site], batches: Batches, add: Callable[[int, torch.Tensor], None]
) -> None:
    current: dict[str, Any] = {}
    sums: dict[int, torch.Tensor] = {}

    def hook(index: int, args: tuple[Any, ...]) -> None:
        activations = tokens(args[0].detach(), current["batch"])
        sums[index] = activations.sum()
        add(index, activations)

    count = 0
    with evaluating(model), torch.no_grad(), hooked([site.output for site in sites], hook):
        for batch in batches:
            current["batch"] = batch
            run(model, batch)
            count += 1
            check_calibration(count, list(sums.values()))
    check_calibration(count, [])


def check_calibration(count: int, values: list[torch.Tensor]) -> None:
    """Check that there were batches, and that what was gathered of them are numbers.

    Raises:
        ElasticError: if not.
    """
    if not count:
        raise ElasticError("there is no calibration data with usable rows; name some with --calibration.")
    if not all(torch.isfinite(value).all() for value in values):
        raise ElasticError("the model's activations on the calibration data are NaN or infinite; check model and data.")


def _falling(order: list[int]) -> torch.Tensor:
    """Scores that put the units into this order."""
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[torch.tensor(order)] = torch.arange(len(order), 0, -1, dtype=torch.float64)
    return scores


def pivoted_qr_order(gram: torch.Tensor, weight: torch.Tensor, unit: int) -> list[int]:
    """Return units by the pivots of a column-pivoted QR of the activations.

    The pivots of QR on the activations are those of a Cholesky decomposition of their Gram matrix, which
    does not grow with the data. Columns of one unit enter together: the unit whose remaining energy
    (trace of its Schur complement) is largest.

    Args:
        gram: ``(width, width)``.
        weight: ``(out, width)``; not used: this method looks at activations alone.
        unit: columns of one unit.
    """
    if unit == 1:
        _, pivots, rank, _ = lapack.dpstrf(gram.numpy(), tol=0.0)
        picked = (pivots - 1).tolist()
        # Beyond the rank nothing remains to be pivoted on: LAPACK leaves these in the order in which it met them.
        energy = gram.diagonal()
        return picked[:rank] + sorted(picked[rank:], key=lambda i: -float(energy[i]))
    remaining = gram.clone()
    units = len(gram) // unit
    floor = 1e-12 * float(gram.diagonal().mean())
    left = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    for _ in range(units):
        energy = remaining.diagonal().view(units, unit).sum(1).masked_fill(~left, -torch.inf)
        pick = int(energy.argmax())
        order.append(pick)
        left[pick] = False
        columns = slice(pick * unit, (pick + 1) * unit)
        block = remaining[columns, columns]
        ridge = floor * torch.eye(unit, dtype=block.dtype)
        remaining -= remaining[:, columns] @ torch.linalg.solve(block + ridge, remaining[columns, :])
    return order


def reconstruction_order(gram: torch.Tensor, weight: torch.Tensor, unit: int) -> list[int]:
    """Return units by the reverse of the order in which a structured optimal brain surgeon removes them.

    Removing the columns ``S`` costs ``tr(W_S [H⁻¹]_SS⁻¹ W_Sᵀ)`` of squared output error when all others are
    adjusted for it; the cheapest leaves, ``W`` and ``H⁻¹`` are updated, and so on (ZipLM, arXiv 2302.04089,
    section 3.1).

    Args:
        gram: ``(width, width)``, the Hessian ``H`` of the output error.
        weight: ``(out, width)``.
        unit: columns of one unit.
    """
    width = len(gram)
    units = width // unit
    damping = RELATIVE_DAMPING * gram.diagonal().mean()
    inverse = torch.linalg.inv(gram + damping * torch.eye(width, dtype=gram.dtype))
    weight = weight.clone()
    left = torch.arange(units)
    removed: list[int] = []
    while len(left):
        blocks = inverse.view(len(left), unit, len(left), unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        per_unit = weight.view(-1, len(left), unit).permute(1, 2, 0)
        costs = (per_unit * torch.linalg.solve(blocks, per_unit)).sum((1, 2))
        # Neurons leave a few at a time, which is much faster than one by one; heads are few, and leave alone.
        num_leaving = max(1, units // NEURON_STEPS)
        leaving = torch.sort(costs, stable=True).indices[:num_leaving]
        removed += left[leaving].tolist()
        staying = torch.ones(len(left), dtype=torch.bool)
        staying[leaving] = False
        out = positions(Block(0, len(left), unit), leaving)
        kept = positions(Block(0, len(left), unit), staying.nonzero().flatten())
        solved = torch.linalg.solve(inverse[out][:, out], inverse[out][:, kept])
        weight = weight[:, kept] - weight[:, out] @ solved
        inverse = inverse[kept][:, kept] - inverse[kept][:, out] @ solved
        left = left[staying]
    return removed[::-1]
