r"""Measure every subnet of a small universal model on validation data, and remember it beside the model.

    elastic train recipes/matformer.yaml --variant cifar10 -o universal
    python benchmarks/quality/measure_all.py universal
    python benchmarks/quality/search.py universal -o benchmarks/results/search_vit_cifar10.csv

Subnets that begin with the same layers share what these compute, so most of them take little more than one layer.
Afterwards every search method finds what it asks for already measured, so evolution costs nothing, and `search.py` says
what the best of all is. Some are measured the ordinary way before, and must agree.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from elastic import active
from elastic.nested import evaluating
from elastic.nested.active import ActiveSubnet
from elastic.pipeline import Universal
from elastic.pipeline.quality import quality_of
from elastic.space import ResolvedSpace, Subnet

NUM_CHECKED = 5
MAX_SUBNETS = 50_000


def every_subnet(space: ResolvedSpace) -> list[Subnet]:
    """All subnets of a space, those that begin with the same layers one after the other."""
    if space.num_subnets > MAX_SUBNETS:
        sys.exit(f"{space.num_subnets:,} subnets are too many to measure all; up to {MAX_SUBNETS:,} are reasonable.")
    found = []
    for (attention, mlp), widths in itertools.product(space.skeletons(), space.widths()):
        per_layer = [
            [(f, h) for f in (space.ffn if i in mlp else (0,)) for h in (space.heads if i in attention else (0,))]
            for i in range(space.dims.num_layers)
        ]
        found += [Subnet(*zip(*chosen, strict=True), *widths) for chosen in itertools.product(*per_layer)]
    return sorted(found, key=lambda s: (s.hidden or 0, s.embedding_dim or 0, [*zip(s.heads, s.ffn, strict=True)]))


def remember_layers(universal: Universal) -> list[Callable[[], None]]:
    """Have layers, and their attention, compute nothing while no choice up to them changes; return how they forget."""
    running, forgets = universal.elastic.active, []
    for module in universal.model.modules():
        if hasattr(module, "nested_index"):
            module.forward, forget = _remembering(module.forward, running, module.nested_index, 1)
        elif hasattr(module, "sublayer") and module.sublayer.axis == "heads":
            module.forward, forget = _remembering(module.forward, running, module.sublayer.layer, 0)
        else:
            continue
        forgets.append(forget)
    return forgets


def _remembering(
    forward: Callable[..., Any], running: ActiveSubnet, layer: int, with_ffn: int
) -> tuple[Callable[..., Any], Callable[[], None]]:
    last: dict[Any, Any] = {}

    def run(*args: Any, **kwargs: Any) -> Any:
        subnet = running.current
        key = subnet.ffn[: layer + with_ffn], subnet.heads[: layer + 1], subnet.hidden
        if key not in last:
            last.clear()
            last[key] = forward(*args, **kwargs)
        return last[key]

    return run, last.clear


def measured_items(universal: Universal, subnets: list[Subnet], batch_size: int) -> Iterator[list[torch.Tensor]]:
    """For every batch of the validation data, what the metric keeps of its items, by subnet."""
    task, model = universal.task, universal.model
    forgets = remember_layers(universal)
    with torch.inference_mode(), evaluating(model):
        for batch in DataLoader(task.datasets["validation"], batch_size=batch_size, collate_fn=task.collate):
            labels = batch.pop("labels")
            for forget in forgets:
                forget()
            items = []
            for subnet in subnets:
                with active(model, subnet):
                    outputs = task.outputs(model(**batch), batch)
                items.append(
                    task.metric.items(outputs[..., : subnet.embedding_dim] if task.embeds else outputs, labels)
                )
            yield items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="universal model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    universal = Universal.open(args.folder)
    subnets = every_subnet(universal.elastic.resolved)
    for subnet in random.Random(0).sample(subnets, min(NUM_CHECKED, len(subnets))):
        universal.measure(subnet)
    known = dict(universal.measured.items())
    items: list[list[torch.Tensor]] = [[] for _ in subnets]
    num_examples = len(universal.task.datasets["validation"])
    for number, batch in enumerate(measured_items(universal, subnets, args.batch_size), start=1):
        for found, of_batch in zip(items, batch, strict=True):
            found.append(of_batch)
        print(f"{min(number * args.batch_size, num_examples)} of {num_examples} examples", flush=True)
    metric = universal.task.metric
    qualities = {s: quality_of(metric, torch.cat(i), "validation") for s, i in zip(subnets, items, strict=True)}
    for subnet, quality in known.items():
        if subnet in qualities and abs(qualities[subnet].value - quality.value) > 1e-3 * abs(quality.value):
            sys.exit(f"{subnet.describe()}: {qualities[subnet].value} with shared layers, {quality.value} without.")
    apart = max(abs(qualities[subnet].value - known[subnet].value) for subnet in known if subnet in qualities)
    print(f"{len(known)} were measured before the ordinary way; differences are at most {apart:.2g} {metric.name}.")
    universal.measured.update({subnet: quality for subnet, quality in qualities.items() if subnet not in known})


if __name__ == "__main__":
    main()
