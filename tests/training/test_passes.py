"""Exits and truncated embeddings that share a pass: grouped rightly, and trained as if each had one of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import default_data_collator

from elastic.nested import active, get_elastic, make_elastic
from elastic.space import SearchSpace, Subnet
from elastic.training import Distillation, ElasticTrainer, Joint, SimilarityDistillation, by_subnet
from elastic.training.passes import of_all_layers, shared_passes
from tests.tiny import tiny_bert_base, tiny_llama, tiny_vit
from tests.training.test_trainer import arguments, images, texts

EXITS = SearchSpace(ffn=[0.5, 1.0], exit=[1, 2, 3], embedding_dim=[8, 16, 32])


def test_exits_and_dimensions_are_read_from_the_widest():
    full = Subnet((64,) * 3, (4,) * 3)
    first = Subnet((64, 0, 0), (4, 0, 0), embedding_dim=8)
    narrow = Subnet((32, 64, 64), (4,) * 3)
    of_narrow = Subnet((32, 64, 0), (4, 4, 0))
    passes = shared_passes([full, first, narrow, of_narrow])
    assert [shared.subnets for shared in passes] == [(full, first), (narrow, of_narrow)]
    assert [shared.widest for shared in passes] == [full, narrow]


def test_another_width_of_the_stream_has_its_own_pass():
    full, slim = Subnet((64,) * 3, (4,) * 3), Subnet((64,) * 3, (4,) * 3, hidden=16)
    assert len(shared_passes([full, slim])) == 2


def test_a_truncated_embedding_runs_whole():
    (shared,) = shared_passes([Subnet((64,), (4,), embedding_dim=8)])
    assert shared.widest == Subnet((64,), (4,))


@pytest.mark.parametrize("build", [tiny_vit, tiny_llama])
def test_a_shared_pass_trains_as_passes_of_their_own(tmp_path, build):
    data = images(8) if build is tiny_vit else texts(8)
    model, reference = make_elastic(build(), EXITS), make_elastic(build(), EXITS)
    space = get_elastic(model).resolved
    subnets = [space.largest, space.uniform(exit=1), space.uniform(exit=2), space.uniform(ffn=32)]
    weights = {subnets[1]: 3.0}
    ElasticTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1, optim="sgd"),
        train_dataset=data,
        data_collator=default_data_collator,
        sampler=lambda step, micro_step: subnets,
        weights=by_subnet(weights),
    ).train()
    reference.train()
    batch = default_data_collator(data)
    for subnet in subnets:
        with active(reference, subnet):
            (reference(**batch).loss * weights.get(subnet, 1.0) / 6).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        gradient = torch.zeros_like(expected) if expected.grad is None else expected.grad
        assert torch.allclose(actual, expected - 1e-2 * gradient, atol=1e-6), name


def test_an_exit_is_compared_with_the_teacher_where_it_ends(tmp_path):
    data = images(8)
    teacher, results = tiny_vit(), []
    space = get_elastic(make_elastic(tiny_vit(), EXITS)).resolved
    for sampled in ([space.largest, space.uniform(exit=2)], [space.uniform(exit=2)]):
        model = make_elastic(tiny_vit(), EXITS)
        ElasticTrainer(
            model=model,
            args=arguments(tmp_path, max_steps=1, optim="sgd"),
            train_dataset=data,
            data_collator=default_data_collator,
            sampler=lambda step, micro_step, sampled=sampled: sampled,
            weights=by_subnet({space.largest: 0.0}),
            objective=Distillation(hidden_weight=1.0),
            teacher=teacher,
        ).train()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_a_teacher_of_the_same_width_runs_in_all_of_its_layers(tmp_path):
    assert of_all_layers(Subnet((0, 16, 0), (2, 0, 4))) == Subnet((16, 16, 16), (2, 4, 4))
    model, teacher = make_elastic(tiny_vit(), EXITS), make_elastic(tiny_vit(), EXITS)
    narrow = get_elastic(model).resolved.uniform(ffn=32, exit=2)
    seen = []
    teacher.register_forward_pre_hook(lambda module, args: seen.append(get_elastic(teacher).active.current))
    ElasticTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=images(8),
        data_collator=default_data_collator,
        sampler=Joint([get_elastic(model).resolved.largest, narrow]),
        objective=Distillation(),
        teacher=teacher,
        same_width_teacher=True,
    ).train()
    assert seen == [get_elastic(model).resolved.largest, Subnet((32,) * 3, (4,) * 3)]


def test_embedding_dimensions_are_trained(tmp_path):
    """Only what each subnet keeps of the embedding gets a gradient from it."""
    model = make_elastic(tiny_bert_base(), EXITS)
    space = get_elastic(model).resolved
    seen = []

    def loss(embeddings, labels):
        seen.append((embeddings.shape[-1], len(labels)))
        return embeddings.square().sum()

    data = [{"input_ids": example["input_ids"], "labels": torch.tensor(0.5)} for example in texts(8)]
    ElasticTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=data,
        data_collator=default_data_collator,
        sampler=Joint([space.uniform(exit=1, embedding_dim=8), space.uniform(exit=2, embedding_dim=16), space.largest]),
        embed=lambda returned, inputs: returned["last_hidden_state"].mean(1),
        embedding_loss=loss,
    ).train()
    assert seen == [(32, 8), (16, 8), (8, 8)]


def test_labels_and_teacher_together(tmp_path):
    objective = SimilarityDistillation(task_weight=0.5, embedding_weight=0.0)
    model = make_elastic(tiny_bert_base(), EXITS)
    space = get_elastic(model).resolved
    data = [{"input_ids": example["input_ids"], "labels": torch.tensor(0.5)} for example in texts(16)]
    trainer = ElasticTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=30, learning_rate=3e-3),
        train_dataset=data,
        data_collator=default_data_collator,
        sampler=Joint([space.uniform(exit=1, embedding_dim=8), space.largest]),
        objective=objective,
        embed=lambda returned, inputs: returned["last_hidden_state"].mean(1),
        embedding_loss=lambda embeddings, labels: (1 - torch.nn.functional.cosine_similarity(
            embeddings[0::2], embeddings[1::2])).mean(),
    )  # fmt: skip
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < 0.6 * history[0]
