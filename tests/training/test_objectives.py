"""Objectives: what is learned from whom, and what gets no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from elastic.training import Distillation, Returned, TaskLoss
from elastic.training.objectives import divergence


def test_task_loss_passes_through():
    loss = torch.tensor(1.5)
    assert TaskLoss()(loss, Returned(torch.zeros(2, 3)), Returned(torch.ones(2, 3))) is loss


def test_the_teacher_learns_from_labels_and_students_from_the_teacher():
    objective = Distillation()
    task_loss, logits = torch.tensor(2.0), torch.randn(4, 5, requires_grad=True)
    assert objective(task_loss, Returned(logits), None) is task_loss
    teacher = torch.randn(4, 5)
    expected = F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert torch.allclose(objective(task_loss, Returned(logits), Returned(teacher)), expected)
    assert objective(task_loss, Returned(teacher.clone()), Returned(teacher)) == pytest.approx(0.0, abs=1e-6)


def test_task_weight_mixes():
    logits, teacher = torch.randn(4, 5), torch.randn(4, 5)
    distilled = Distillation()(torch.tensor(2.0), Returned(logits), Returned(teacher))
    mixed = Distillation(task_weight=0.25)(torch.tensor(2.0), Returned(logits), Returned(teacher))
    assert torch.allclose(mixed, 0.25 * 2.0 + 0.75 * distilled)


def test_padding_does_not_count():
    logits, teacher = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    changed = logits.clone()
    changed[mask == 0] = 100.0
    assert torch.allclose(divergence(logits, teacher, 1.0, mask), divergence(changed, teacher, 1.0, mask))


def test_temperature_is_scaled_back():
    logits, teacher = torch.randn(64, 10) * 0.01, torch.randn(64, 10) * 0.01
    assert torch.allclose(divergence(logits, teacher, 1.0, None), divergence(logits, teacher, 4.0, None), rtol=0.05)
