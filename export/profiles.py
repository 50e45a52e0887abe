"""Optimization profiles: the sizes that TensorRT engines are built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from elastic.errors import CheckpointError

from .runtime.manifest import MAY_BE_ZERO, Profile, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch


class GivenInputs(Protocol):
    """Inputs of a model whose free dimensions may have any size: `elastic.export.inputs` has three kinds."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""

    @property
    def max_sizes(self) -> dict[str, int]:
        """Upper limits of the free dimensions."""

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray[Any, Any]]:
        """Draw inputs of these sizes."""

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""

    def further_outputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return what the forward pass left in its arguments."""


SEQUENCES = (32, 64, 128, 256, 512)
"""Lengths of the default profiles of texts. Few fixed sizes beat one wide profile, and can be CUDA graphs."""

CONTEXT = 1024
"""Tokens of the default profiles of decoders, with those that are cached."""

PROMPT = 128
"""Tokens at which the default profiles of decoders are fastest."""

MAX_PARITY_TOKENS = 1024
"""Larger sizes of a profile are not compared: the samples would outweigh the weights."""

MAY_BE_FIXED = ("batch", "sequence")
"""Dimensions that become numbers in the graph where all profiles agree on one size."""


def parse_profile(text: str, inputs: GivenInputs) -> Profile:
    """Read ``batch=1,sequence=64`` or, with least, best and largest size, ``batch=1:4:8,sequence=16:64:128``.

    A batch that is not given is 1, and a cache is empty.

    Raises:
        CheckpointError: if it is no such text, or does not fit the model.
    """
    free = _free_dims(inputs.specs)
    ranges: dict[str, tuple[int, int, int]] = {}
    for part in text.split(","):
        name, _, numbers = part.strip().partition("=")
        if name not in free or name in ranges:
            raise CheckpointError(
                f"profile '{text}' has '{name}' where this model needs each of {', '.join(free)} once; write "
                f"{_example(free)}."
            )
        sizes = [int(number) if number.isdecimal() else -1 for number in numbers.split(":")]
        low, opt, high = sizes * 3 if len(sizes) == 1 else sizes if len(sizes) == 3 else (-1, -1, -1)
        if not (name not in MAY_BE_ZERO) <= low <= opt <= high:
            raise CheckpointError(
                f"profile '{text}' has the sizes '{numbers}' for {name}; write one size, or min:opt:max such as 1:4:8."
            )
        limit = inputs.max_sizes.get(name)
        if limit is not None and high > limit:
            raise CheckpointError(f"profile '{text}' has {name} {high}, and this model takes {limit} at most.")
        ranges[name] = (low, opt, high)
    ranges.setdefault("batch", (1, 1, 1))
    if "past" in free:
        ranges.setdefault("past", (0, 0, 0))
    if missing := [name for name in free if name not in ranges]:
        raise CheckpointError(f"profile '{text}' has no {missing[0]}; write {_example(free)}.")
    profile = _profile(ranges)
    limit = inputs.max_sizes.get("total")
    if limit is not None and profile.max.get("total", 0) > limit:
        raise CheckpointError(
            f"profile '{text}' has {profile.max['total']} tokens with the cached ones, and this model takes {limit} "
            "at most."
        )
    return profile


def default_profiles(inputs: GivenInputs) -> tuple[Profile, ...]:
    """Return profiles of batch 1.

    Texts have a few fixed lengths up to what the model takes; decoders one profile for prompts and one for single
    tokens.
    """
    free = _free_dims(inputs.specs)
    if "past" in free:
        context = min(inputs.max_sizes.get("total", CONTEXT), CONTEXT)
        best = min(PROMPT, context)
        prompt = {"sequence": (1, best, context), "past": (0, 0, 0)}
        token = {"sequence": (1, 1, 1), "past": (1, min(best, context - 1), context - 1)}
        return tuple(_profile({"batch": (1, 1, 1), **ranges}) for ranges in (prompt, token))
    if "sequence" in free:
        limit = min(inputs.max_sizes.get("sequence", SEQUENCES[-1]), SEQUENCES[-1])
        lengths = [*(length for length in SEQUENCES if length < limit), limit]
        return tuple(_profile({"batch": (1, 1, 1), "sequence": (length,) * 3}) for length in lengths)
    return (_profile({"batch": (1, 1, 1)}),)


def fixed_sizes(profiles: Sequence[Profile]) -> dict[str, int]:
    """Return the dimensions that have one and the same size in all profiles, and become numbers."""
    first = profiles[0]
    return {
        name: size
        for name, size in first.min.items()
        if name in MAY_BE_FIXED and all(profile.min[name] == profile.max[name] == size for profile in profiles)
    }


@dataclass(frozen=True)
class ProfiledInputs:
    """Inputs at the sizes of profiles: what is compared, and what the graph still leaves free."""

    base: GivenInputs
    profiles: tuple[Profile, ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""
        return self.fix(self.base.specs)

    @property
    def max_sizes(self) -> dict[str, int]:
        """Upper limits of the free dimensions: the largest sizes of the profiles."""
        return {name: max(profile.max[name] for profile in self.profiles) for name in _all_dims(self.specs)}

    def fix(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return inputs or outputs with numbers where all profiles agree."""
        fixed = fixed_sizes(self.profiles)
        return tuple(
            replace(spec, shape=tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape))
            for spec in specs
        )

    def parity_sizes(self) -> list[dict[str, int]]:
        """Return the sizes at which graph and model are compared: the best of every profile, then its ends."""
        wanted = [profile.opt for profile in self.profiles]
        for profile in self.profiles:
            for sizes in (profile.min, profile.max):
                if sizes["batch"] * sizes.get("total", sizes.get("sequence", 1)) <= MAX_PARITY_TOKENS:
                    wanted.append(sizes)
        return [sizes for number, sizes in enumerate(wanted) if sizes not in wanted[:number]]

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray[Any, Any]]:
        """Draw inputs of these sizes."""
        return self.base.sample(sizes, seed)

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass."""
        return self.base.arguments(tensors)

    def further_outputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return what the forward pass left in its arguments."""
        return self.base.further_outputs(arguments)


def _profile(ranges: Mapping[str, tuple[int, ...]]) -> Profile:
    order = [name for name in ("batch", "sequence", "past") if name in ranges]
    sizes = [{name: ranges[name][index] for name in order} for index in range(3)]
    for size in sizes:
        if "past" in size:
            size["total"] = size["past"] + size["sequence"]
    return Profile(*sizes)


def _all_dims(specs: Sequence[TensorSpec]) -> list[str]:
    return list(dict.fromkeys(dim for spec in specs for dim in spec.shape if isinstance(dim, str)))


def _free_dims(specs: Sequence[TensorSpec]) -> list[str]:
    return [name for name in _all_dims(specs) if name != "total"]


def _example(free: Sequence[str]) -> str:
    example = {"batch": "batch=1", "sequence": "sequence=16:64:128", "past": "past=0:64:512"}
    return ",".join(example[name] for name in free)
