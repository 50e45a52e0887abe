"""Which subnets of a step share a forward pass: early exits and truncated embeddings cost no pass of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from elastic.space import Subnet


@dataclass(frozen=True)
class SharedPass:
    """One forward and backward pass, and the subnets that are read from it."""

    widest: Subnet
    """What runs: all of its layers are kept by each of ``subnets`` up to that one's exit."""
    subnets: tuple[Subnet, ...]


def shared_passes(subnets: Iterable[Subnet]) -> list[SharedPass]:
    """Group subnets by the pass that they can be read from, in the order in which they are first needed."""
    passes: list[SharedPass] = []
    for subnet in subnets:
        for index, shared in enumerate(passes):
            if reads_from(subnet, shared.widest):
                passes[index] = replace(shared, subnets=(*shared.subnets, subnet))
                break
        else:
            passes.append(SharedPass(replace(subnet, embedding_dim=None), (subnet,)))
    return passes


def exit_of(subnet: Subnet) -> int:
    """Return the number of layers after which the model's head reads the stream."""
    return subnet.kept_layers[-1] + 1


def of_all_layers(subnet: Subnet) -> Subnet:
    """Return the subnet with its skipped sub-layers back, as wide as the widest that it keeps."""
    return replace(
        subnet,
        ffn=tuple(ffn or max(subnet.ffn) for ffn in subnet.ffn),
        heads=tuple(heads or max(subnet.heads) for heads in subnet.heads),
        embedding_dim=None,
    )


def reads_from(subnet: Subnet, widest: Subnet) -> bool:
    """Whether ``subnet`` is ``widest`` left early, or with fewer dimensions of its embedding."""
    end = exit_of(subnet)
    return (subnet.hidden, subnet.ffn[:end], subnet.heads[:end]) == (
        widest.hidden,
        widest.ffn[:end],
        widest.heads[:end],
    )
