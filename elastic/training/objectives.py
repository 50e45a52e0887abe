"""Objectives: what each subnet of a step is trained on. A step's loss is the mean over its subnets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F


class Objective(Protocol):
    """Turns the task loss of one subnet into the loss that it is trained on."""

    def __call__(
        self, task_loss: torch.Tensor, logits: torch.Tensor, teacher: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of one subnet.

        Args:
            task_loss: scalar, from the labels.
            logits: ``(batch, classes)`` or ``(batch, tokens, vocabulary)``.
            teacher: detached logits of the step's first subnet, of the same shape; None for that subnet itself.
            mask: ``(batch, tokens)``, 0 where there is padding; None without.
        """
        ...


@dataclass(frozen=True)
class TaskLoss:
    """Every subnet learns from the labels."""

    def __call__(
        self, task_loss: torch.Tensor, logits: torch.Tensor, teacher: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the task loss."""
        return task_loss


@dataclass(frozen=True)
class InPlaceDistillation:
    """The step's first subnet learns from the labels, and teaches the others (US-Nets, arXiv 1903.05134, section 3.3).

    The others minimise ``KL(teacher || student)`` at ``temperature``, scaled by its square, mixed with
    their own task loss by ``task_weight`` (0 in the paper). The teacher gets no gradient from it.
    """

    temperature: float = 1.0
    task_weight: float = 0.0

    def __call__(
        self, task_loss: torch.Tensor, logits: torch.Tensor, teacher: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the task loss of the teacher, or the mixed loss of a student."""
        if teacher is None:
            return task_loss
        distilled = divergence(logits, teacher, self.temperature, mask)
        return self.task_weight * task_loss + (1.0 - self.task_weight) * distilled


def divergence(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return ``temperature² · KL(teacher || student)``, averaged over examples, or over tokens that are no padding."""
    student_log = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    per_item = F.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1) * temperature**2
    if mask is None or per_item.ndim != mask.ndim:
        return per_item.mean()
    weights = mask.to(per_item.dtype)
    return (per_item * weights).sum() / weights.sum().clamp(min=1)
