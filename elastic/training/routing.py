"""Training routers: a capacity that the gates are held to, and what they do in the log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import Trainer

from elastic.errors import ElasticError, RecipeError
from elastic.nested import GateGradient, GateKey, get_elastic, get_routers, read_routers, routed, write_routers
from elastic.space import Subnet
from elastic.training.trainer import ElasticMixin

RoutingMode = Literal["tune", "joint"]
Penalty = Literal["absolute", "above"]


@dataclass(frozen=True)
class Capacity:
    """Holds the share of gates that are on to a target: ``weight · |share - target|``.

    Router-Tuning (arXiv 2410.13184) adds such a term to the task loss. ``above`` counts only what is more than the
    target: ``weight · max(0, share - target)``.
    """

    target: float | tuple[float, ...]
    """Share of sequences for which a gate is on; several: one for each gate."""
    weight: float = 1.0
    per_layer: bool = False
    """Whether every gate is held to its target, or their mean."""
    penalty: Penalty = "absolute"

    def __post_init__(self) -> None:
        if isinstance(self.target, list):
            object.__setattr__(self, "target", tuple(self.target))
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        if not targets or not all(0.0 <= target <= 1.0 for target in targets):
            raise RecipeError(f"the capacity of routers is {self.target}, and must lie between 0 and 1.")

    def check(self, num_gates: int) -> None:
        """Check that there are as many targets as gates.

        Raises:
            RecipeError: if not.
        """
        if isinstance(self.target, tuple) and len(self.target) != num_gates:
            raise RecipeError(f"{len(self.target)} capacities are given, and the model has {num_gates} routers.")

    def __call__(self, gates: Mapping[GateKey, torch.Tensor], all_keys: tuple[GateKey, ...]) -> torch.Tensor:
        """Return the penalty, a scalar.

        Args:
            gates: ``(rows,)`` each, 0 or 1; those that a subnet does without are missing.
            all_keys: the model's gates, in the order of the targets.
        """
        shares = torch.stack([gate.mean() for gate in gates.values()])
        if isinstance(self.target, tuple):
            of = dict(zip(all_keys, self.target, strict=True))
            targets = shares.new_tensor([of[key] for key in gates])
        else:
            targets = shares.new_full((len(gates),), self.target)
        if not self.per_layer:
            shares, targets = shares.mean(), targets.mean()
        excess = shares - targets
        return self.weight * (excess.abs() if self.penalty == "absolute" else excess.clamp(min=0.0)).mean()


def gate_entropy(share: float) -> float:
    """Return the entropy in bits of a gate that is on for this share of sequences.

    0 where it decides alike for all, so that a static subnet would do as well; 1 where it is on for half of them.
    """
    return sum(-p * math.log2(p) for p in (share, 1.0 - share) if 0.0 < p < 1.0)


@dataclass(frozen=True)
class RouterTraining:
    """How the routers of a model are trained."""

    capacity: Capacity
    mode: RoutingMode = "tune"
    """``tune``: everything but the routers is frozen. ``joint``: all is trained."""
    gradient: GateGradient = "interpolated"
    """How the loss reaches the routers; see `elastic.nested.gates.GateGradient`."""


class RoutedMixin(ElasticMixin):
    """Trains the routers of a universal model (see `elastic.nested.add_routers`) with it, or alone.

    Training runs the dense mask, so that gates that are off learn too; evaluation skips. The log says ``capacity``
    (the share of gates that were on) and ``gate_entropy`` (`gate_entropy`), as means and for each gate.
    """

    def __init__(self, *args: Any, routers: RouterTraining, **kwargs: Any) -> None:
        """Take what `ElasticMixin` takes, and how routers are trained.

        Raises:
            ElasticError: if the model has no routers, or activations are checkpointed in a way that routers cannot
                learn through.
            RecipeError: if the number of capacities is not that of the routers.
        """
        super().__init__(*args, **kwargs)
        self._elastic = get_elastic(self._universal)
        routing = self._elastic.routing
        modules = get_routers(self._universal)
        assert routing is not None
        routers.capacity.check(len(routing.keys))
        how: Any = self.args.activation_checkpointing_kwargs
        if self.args.activation_checkpointing and isinstance(how, dict) and how.get("use_reentrant"):
            raise ElasticError(
                "routers learn nothing through reentrant activation checkpointing; set use_reentrant: false."
            )
        self.routers, self._keys = routers, routing.keys
        self.usage: dict[Subnet, dict[GateKey, float]] = {}
        """Of each subnet that was evaluated last, the share of sequences for which each gate was on."""
        if routers.mode == "tune":
            self._universal.requires_grad_(False)
        modules.requires_grad_(True)
        self._gates_on: dict[GateKey, torch.Tensor] = {}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Add the capacity term to the loss of a training step."""
        step = self._step
        if step is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with routed(self._universal, dense=True, gradient=self.routers.gradient) as trace:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if gates := trace.gates:
            share = sum(self._weight(subnet) for subnet in step.subnets) / step.total_weight
            term = self.routers.capacity(gates, self._keys)
            loss = loss + share * term / self._steps_left_to_divide(num_items_in_batch)
            self._count(gates)
        return (loss, outputs) if return_outputs else loss

    def _count(self, gates: Mapping[GateKey, torch.Tensor]) -> None:
        for key, seen in _counts(gates).items():
            self._gates_on[key] = self._gates_on[key] + seen if key in self._gates_on else seen

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the gates did since the last time."""
        if "loss" in logs:
            logs = {**logs, **gate_report(self._shares(self._gates_on))}
            self._gates_on = {}
        super().log(logs, *args, **kwargs)

    def _shares(self, counts: Mapping[GateKey, torch.Tensor]) -> dict[GateKey, float]:
        """Return the shares of gates that were on, over all processes, from the counts of this one."""
        none = torch.zeros(2, dtype=torch.float64)
        stacked = torch.stack([counts.get(key, none).cpu() for key in self._keys]).to(self.args.device)
        on, rows = self.accelerator.reduce(stacked.float(), reduction="sum").cpu().unbind(1)
        return {key: float(a / b) for key, a, b in zip(self._keys, on, rows, strict=True) if b}

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Evaluate as routed: ``eval_capacity`` is the share of gates that were on, over granularities and processes.

        That of each subnet is in ``usage`` afterwards.
        """
        if isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # Comes back here for each of them.
        self.usage = {}
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        shares = {key: [of[key] for of in self.usage.values() if key in of] for key in self._keys}
        means = {key: sum(found) / len(found) for key, found in shares.items() if found}
        report = {f"{metric_key_prefix}_{name}": value for name, value in gate_report(means).items()}
        self.log(report)
        return {**metrics, **report}

    @contextmanager
    def _evaluating(self, subnet: Subnet) -> Iterator[None]:
        with super()._evaluating(subnet), routed(self._universal, dense=False) as trace:
            yield
        # Each process sees its own part of the data, the last batch filled up with examples of another.
        self.usage[subnet] = self._shares(_counts(trace.gates))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the routers beside the weights of a training checkpoint."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_routers(self._universal, Path(output_dir or str(self.args.output_dir)), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        read_routers(self._universal, Path(resume_from_checkpoint))


def _counts(gates: Mapping[GateKey, torch.Tensor]) -> dict[GateKey, torch.Tensor]:
    """Return ``(2,)`` for each gate: for how many sequences it was on, and of how many."""
    return {
        key: torch.stack([gate.detach().sum(), gate.new_tensor(float(len(gate)))]).double()
        for key, gate in gates.items()
    }


def gate_report(usage: Mapping[GateKey, float]) -> dict[str, float]:
    """Return capacity and gate entropy, their means and those of each gate, by name."""
    if not usage:
        return {}
    entropy = {key: gate_entropy(share) for key, share in usage.items()}
    report = {
        "capacity": sum(usage.values()) / len(usage),
        "gate_entropy": sum(entropy.values()) / len(entropy),
    }
    report.update({f"capacity_{key}": share for key, share in usage.items()})
    return {**report, **{f"gate_entropy_{key}": bits for key, bits in entropy.items()}}


class RoutedTrainer(RoutedMixin, Trainer):
    """An `elastic.ElasticTrainer` that trains routers."""
