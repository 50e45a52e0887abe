"""Objectives: what each subnet of a step is trained on. A step's loss is the mean over its subnets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from elastic.errors import ElasticError


@dataclass(frozen=True)
class Returned:
    """What a subnet, or a teacher, returned for a batch."""

    logits: torch.Tensor | None = None
    """``(batch, classes)`` or ``(batch, tokens, vocabulary)``."""
    embeddings: torch.Tensor | None = None
    """``(batch, width)``: one vector an example, for models that embed."""
    tokens: torch.Tensor | None = None
    """``(batch, tokens, hidden)``: what models without a head return."""
    hidden_states: tuple[torch.Tensor, ...] | None = None
    """``(batch, tokens, hidden)`` before each layer of the universal model, and after the last."""
    mask: torch.Tensor | None = None
    """``(batch, tokens)``, 0 where there is padding; None without."""
    kept_layers: tuple[int, ...] = ()
    """Layers of the universal model that computed."""

    def detach(self) -> Returned:
        """Return the same without gradients."""
        states = None if self.hidden_states is None else tuple(state.detach() for state in self.hidden_states)
        returned = (self.logits, self.embeddings, self.tokens)
        logits, embeddings, tokens = (None if x is None else x.detach() for x in returned)
        return Returned(logits, embeddings, tokens, states, self.mask, self.kept_layers)


class Objective(Protocol):
    """Turns what one subnet returned into the loss that it is trained on."""

    def __call__(self, task_loss: torch.Tensor | None, student: Returned, teacher: Returned | None) -> torch.Tensor:
        """Return the loss of one subnet, a scalar.

        Args:
            task_loss: scalar, from the labels; None without labels.
            student: what the subnet returned.
            teacher: without gradients, what the frozen teacher returned; without a frozen teacher, what the
                step's first subnet did, and None for that subnet itself.
        """
        ...


def _from_labels(task_loss: torch.Tensor | None) -> torch.Tensor:
    if task_loss is None:
        raise ElasticError("the data has no labels to learn from; use an objective with a frozen teacher.")
    return task_loss


@dataclass(frozen=True)
class TaskLoss:
    """Every subnet learns from the labels."""

    def __call__(self, task_loss: torch.Tensor | None, student: Returned, teacher: Returned | None) -> torch.Tensor:
        """Return the task loss."""
        return _from_labels(task_loss)


@dataclass(frozen=True)
class Distillation:
    """Subnets learn from a teacher's logits, mixed with their own task loss.

    They minimise ``KL(teacher || student)`` at ``temperature``, scaled by its square (Hinton et al., arXiv
    1503.02531, section 2). Without a frozen teacher, the step's first subnet learns from the labels and
    teaches the others (in-place distillation: US-Nets, arXiv 1903.05134, section 3.3). ``hidden_weight``
    adds the hidden states (see `hidden_distance`).
    """

    temperature: float = 1.0
    task_weight: float = 0.0
    hidden_weight: float = 0.0

    def __call__(self, task_loss: torch.Tensor | None, student: Returned, teacher: Returned | None) -> torch.Tensor:
        """Return the task loss of a subnet without teacher, or the mixed loss of a student."""
        if teacher is None:
            return _from_labels(task_loss)
        assert student.logits is not None and teacher.logits is not None
        loss = (1.0 - self.task_weight) * divergence(student.logits, teacher.logits, self.temperature, student.mask)
        if self.task_weight:
            loss = loss + self.task_weight * _from_labels(task_loss)
        return loss + self.hidden_weight * hidden_distance(student, teacher) if self.hidden_weight else loss


@dataclass(frozen=True)
class SimilarityDistillation:
    """Subnets of an embedder learn from a teacher which examples of a batch are alike, with or without labels.

    ``KL(teacher || student)`` between the softmax distributions over the cosine similarities of each example to
    all others of the batch (Starbucks, arXiv 2410.13230, section 3.2, for single texts), plus the squared distance of
    the normalised embeddings (of subnets that keep all dimensions) and of the hidden states, plus the task loss.
    Without a frozen teacher, the step's first subnet learns from the labels, and teaches the others.
    """

    temperature: float = 0.05
    embedding_weight: float = 1.0
    hidden_weight: float = 0.0
    task_weight: float = 0.0

    def __call__(self, task_loss: torch.Tensor | None, student: Returned, teacher: Returned | None) -> torch.Tensor:
        """Return the weighted sum, or the task loss of a subnet without teacher."""
        if teacher is None:
            return _from_labels(task_loss)
        assert student.embeddings is not None and teacher.embeddings is not None
        embedded, taught = (F.normalize(x.float(), dim=-1) for x in (student.embeddings, teacher.embeddings))
        itself = torch.eye(len(embedded), dtype=torch.bool, device=embedded.device)
        students, teachers = (
            (x @ x.T / self.temperature).masked_fill(itself, -1e4).log_softmax(-1) for x in (embedded, taught)
        )
        loss = F.kl_div(students, teachers, log_target=True, reduction="batchmean")
        if embedded.shape == taught.shape:
            loss = loss + self.embedding_weight * (embedded - taught).square().sum(-1).mean()
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_distance(student, teacher)
        return loss + self.task_weight * _from_labels(task_loss) if self.task_weight else loss


def divergence(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return ``temperature² · KL(teacher || student)``, averaged over examples, or over tokens that are no padding."""
    student_log = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    per_item = F.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1) * temperature**2
    return _mean(per_item, mask)


def hidden_distance(student: Returned, teacher: Returned) -> torch.Tensor:
    """Return the mean squared difference of hidden states, relative to the teacher's mean square.

    Compared are the states that the student's layers read, and the last: where layers are gone, the layer before
    them learns to give what they would have given. A narrower stream is compared with the first dimensions of the
    teacher's.
    """
    assert student.hidden_states is not None and teacher.hidden_states is not None
    last = len(teacher.hidden_states) - 1
    distances = []
    for index in (*student.kept_layers[1:], last):
        state = student.hidden_states[index].float()
        taught = teacher.hidden_states[index][..., : state.shape[-1]].float()
        squares = (state - taught).square().mean(-1)
        distances.append(_mean(squares, student.mask) / _mean(taught.square().mean(-1), student.mask).clamp(min=1e-12))
    return torch.stack(distances).mean()


def _mean(per_item: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None or per_item.shape != mask.shape:
        return per_item.mean()
    weights = mask.to(per_item.dtype)
    return (per_item * weights).sum() / weights.sum().clamp(min=1)
