"""Objectives: what is learned from whom, and what gets no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from elastic.errors import ElasticError
from elastic.training import Distillation, Returned, SimilarityDistillation, TaskLoss
from elastic.training.objectives import divergence, hidden_distance


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


def test_hidden_states_and_labels_are_added():
    states = tuple(torch.randn(2, 4, 8) for _ in range(4))
    student = Returned(torch.randn(2, 5), hidden_states=states, kept_layers=(0, 1, 2))
    teacher = Returned(student.logits, hidden_states=tuple(2 * state for state in states))
    loss = Distillation(hidden_weight=3.0)(torch.tensor(1.0), student, teacher)
    # Half of the teacher's size is a quarter of its mean square away.
    assert loss == pytest.approx(0.75, rel=1e-5)


def test_hidden_states_are_compared_where_kept_layers_read():
    teacher = tuple(torch.full((1, 2, 3), float(i + 1)) for i in range(5))
    # Layers 1 and 2 are gone: what layer 0 gives is what layer 3 reads.
    student = (teacher[0], teacher[3], teacher[3], teacher[3], teacher[4])
    given = Returned(hidden_states=student, kept_layers=(0, 3))
    assert hidden_distance(given, Returned(hidden_states=teacher)) == 0
    wrong = (teacher[0], teacher[1], teacher[1], teacher[1], teacher[4])
    assert hidden_distance(Returned(hidden_states=wrong, kept_layers=(0, 3)), Returned(hidden_states=teacher)) > 0


def test_padding_does_not_count_in_hidden_states():
    teacher = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student = tuple(torch.where(mask[..., None] == 1, state, 99.0) for state in teacher)
    given = Returned(hidden_states=student, kept_layers=(0,), mask=mask)
    assert hidden_distance(given, Returned(hidden_states=teacher)) == 0


def test_similarities_are_those_of_the_teacher_or_cost():
    objective = SimilarityDistillation(embedding_weight=0.0)
    teacher = Returned(embeddings=torch.randn(8, 5))
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    # Rotated and scaled embeddings find the same examples alike.
    assert objective(None, Returned(embeddings=3.0 * teacher.embeddings @ rotation), teacher) == pytest.approx(
        0, abs=1e-5
    )
    assert objective(None, Returned(embeddings=torch.randn(8, 5)), teacher) > 0.1
    assert SimilarityDistillation()(None, Returned(embeddings=teacher.embeddings @ rotation), teacher) > 0.1


def test_an_example_is_not_compared_with_itself():
    """With itself, every row would be near one-hot at a low temperature, and nothing could be learned."""
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    loss = SimilarityDistillation(temperature=0.01, embedding_weight=0.0)(
        None, Returned(embeddings=student), Returned(embeddings=teacher)
    )
    assert loss > 1.0


def test_what_is_missing_is_said():
    with pytest.raises(ElasticError, match="no labels to learn from"):
        TaskLoss()(None, Returned(), None)
    with pytest.raises(ElasticError, match="no labels to learn from"):
        SimilarityDistillation()(None, Returned(embeddings=torch.randn(2, 2)), None)
