"""The trainer: mean losses over subnets, accumulation, distillation, evaluation of granularities."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments, default_data_collator, set_seed

from elastic.errors import ElasticError
from elastic.extraction import extract
from elastic.nested import active, get_elastic, make_elastic
from elastic.space import Subnet
from elastic.training import Distillation, ElasticTrainer, Joint, Sandwich, SimilarityDistillation, Uniform
from tests.tiny import SPACE, tiny_bert_base, tiny_llama, tiny_vit


def images(count=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (count,), generator=generator)
    pixels = torch.randn(count, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1).float()
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


def texts(count=16):
    ids = torch.randint(1, 60, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": x, "labels": x} for x in ids]


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(**{**defaults, **changes})


def trained(folder, model, data, sampler, objective=None, **changes):
    trainer = ElasticTrainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
        sampler=sampler,
        objective=objective,
        granularities={"S": get_elastic(model).resolved.smallest, "XL": get_elastic(model).resolved.largest},
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_one_full_subnet_is_a_plain_trainer(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    ours = trained(tmp_path, model, images(), Joint([get_elastic(model).resolved.largest]))
    plain_model = tiny_vit()
    plain = Trainer(
        model=plain_model, args=arguments(tmp_path), train_dataset=images(), data_collator=default_data_collator
    )
    plain.train()
    assert losses(ours) == losses(plain)
    for (name, a), b in zip(model.named_parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_joint_step_is_the_mean_of_the_subnets(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    subnets = [get_elastic(model).resolved.smallest, get_elastic(model).resolved.largest]
    reference = make_elastic(tiny_vit(), SPACE)
    data = images(8)
    trained(tmp_path, model, data, Joint(subnets), max_steps=1, optim="sgd")
    batch = default_data_collator(data)
    reference.train()
    for subnet in subnets:
        with active(reference, subnet):
            (reference(**batch).loss / 2).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        gradient = torch.zeros_like(expected) if expected.grad is None else expected.grad
        assert torch.allclose(actual, expected - 1e-2 * gradient, atol=1e-6), name


@pytest.mark.parametrize("build", [tiny_vit, tiny_llama])
@pytest.mark.parametrize("objective", [None, Distillation(), Distillation(2.0, 0.5)])
def test_accumulation_changes_nothing(tmp_path, build, objective):
    data = images() if build is tiny_vit else texts()
    results = []
    for batch, accumulation in ((8, 1), (2, 4)):
        set_seed(0)
        model = make_elastic(build(), SPACE)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        sampler = Sandwich(get_elastic(model).resolved, num_random=1, seed=3)
        trained(
            tmp_path, model, data, sampler, objective, optim="sgd",
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*results, strict=True))


def test_micro_steps_count_within_a_step(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    seen = []

    def sampler(step, micro_step):
        seen.append((step, micro_step))
        return [get_elastic(model).resolved.largest]

    trained(tmp_path, model, images(), sampler, max_steps=2, gradient_accumulation_steps=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_evaluation_reports_every_granularity(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    trainer = trained(tmp_path, model, images(), Uniform([get_elastic(model).resolved.smallest]))
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_S_loss", "eval_XL_loss"} <= set(metrics)
    assert metrics["eval_XL_loss"] == metrics["eval_loss"] != metrics["eval_S_loss"]
    with active(model, get_elastic(model).resolved.smallest), torch.no_grad():
        expected = model.eval()(**default_data_collator(images())).loss
    assert metrics["eval_S_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_what_is_measured_instead_keeps_the_names_of_granularities(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    resolved = get_elastic(model).resolved
    trainer = ElasticTrainer(
        model=model,
        args=arguments(tmp_path),
        sampler=Uniform([resolved.largest]),
        granularities={"my__S": resolved.smallest},
        measure=lambda: {"a__b": float(sum(get_elastic(model).active.current.ffn))},
    )
    measured = {"eval_my__S_a__b": sum(resolved.smallest.ffn), "eval_a__b": sum(resolved.largest.ffn)}
    assert trainer.evaluate().items() >= measured.items()


def test_evaluation_of_several_datasets(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    trainer = trained(tmp_path, model, images(), Uniform([get_elastic(model).resolved.largest]))
    metrics = trainer.evaluate({"first": images(8), "second": images(16)})
    assert {"eval_first_loss", "eval_second_S_loss"} <= set(metrics)


def test_training_learns(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    resolved = get_elastic(model).resolved
    trainer = trained(tmp_path, model, images(), Joint([resolved.smallest, resolved.largest]), max_steps=40,
                      learning_rate=3e-3, optim="adamw_torch")  # fmt: skip
    assert losses(trainer)[-1] < 0.6 * losses(trainer)[0]


@pytest.mark.parametrize("build", [tiny_vit, tiny_llama])
def test_the_best_checkpoint_is_loaded_whole(tmp_path, build):
    data = images() if build is tiny_vit else texts()
    model = make_elastic(build(), SPACE)
    trainer = trained(
        tmp_path, model, data, Uniform([get_elastic(model).resolved.largest]), max_steps=4, learning_rate=0.3,
        save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_S_loss",
    )  # fmt: skip
    measured = [entry["eval_S_loss"] for entry in trainer.state.log_history if "eval_S_loss" in entry]
    assert trainer.evaluate()["eval_S_loss"] == pytest.approx(min(measured), rel=1e-4)


def test_a_failing_step_leaves_the_trainer_usable(tmp_path):
    model = make_elastic(tiny_vit(), SPACE)
    trainer = trained(tmp_path, model, images(), Uniform([get_elastic(model).resolved.smallest]))
    with pytest.raises(Exception, match="pixel_values|index|NoneType"):
        trainer.training_step(model, {"labels": torch.zeros(2, dtype=torch.long)})
    assert trainer._step is None
    assert get_elastic(model).active.current == get_elastic(model).resolved.largest


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(ElasticError, match="is not elastic"):
        ElasticTrainer(model=tiny_vit(), args=arguments(tmp_path), sampler=lambda step, micro: [])


def run(folder, model, **options):
    trainer = ElasticTrainer(
        model=model,
        args=arguments(folder, max_steps=20, learning_rate=3e-3),
        train_dataset=[{"pixel_values": example["pixel_values"]} for example in images()],
        data_collator=default_data_collator,
        **options,
    )
    trainer.train()
    return trainer


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def strong_vit():
    """Neurons that matter: as they are initialised, nothing is lost without them."""
    model = tiny_vit()
    with torch.no_grad():
        for layer in model.vit.layers:
            layer.mlp.fc1.weight.mul_(10.0)
            layer.mlp.fc2.weight.mul_(10.0)
    return model


def test_a_frozen_teacher_needs_no_labels_and_stays_as_it_is(tmp_path):
    model, teacher = make_elastic(strong_vit(), SPACE), strong_vit()
    small = get_elastic(model).resolved.uniform(ffn=16)
    inputs = default_data_collator([{"pixel_values": example["pixel_values"]} for example in images()])
    wanted = logits(teacher, inputs)

    def distance():
        with active(model, small):
            return float((logits(model, inputs) - wanted).square().mean())

    before, weights = distance(), {name: p.clone() for name, p in teacher.named_parameters()}
    run(tmp_path, model, teacher=teacher, objective=Distillation(hidden_weight=1.0), sampler=Joint([small]))
    assert distance() < 0.5 * before
    assert all(torch.equal(weights[name], p) for name, p in teacher.named_parameters())


def test_an_extracted_model_learns_from_its_teacher_layer_by_layer(tmp_path):
    universal = make_elastic(tiny_vit(), SPACE)
    subnet = Subnet(ffn=(16, 0, 32), heads=(4, 0, 2))
    small = extract(universal, subnet)
    inputs = default_data_collator([{"pixel_values": example["pixel_values"]} for example in images()])
    wanted = logits(universal, inputs)
    before = float((logits(small, inputs) - wanted).square().mean())
    trainer = run(tmp_path, small, teacher=universal, objective=Distillation(hidden_weight=1.0), subnet=subnet)
    assert float((logits(small, inputs) - wanted).square().mean()) < 0.5 * before
    states = tuple(torch.full((1,), float(i)) for i in range(3))  # before layer 0, before layer 2, after
    assert [float(x) for x in trainer._by_universal_layer(states, subnet)] == [0, 1, 1, 2]


def test_embedders_learn_without_labels(tmp_path):
    universal, teacher = make_elastic(tiny_bert_base(), SPACE), tiny_bert_base()
    data = [{"input_ids": torch.randint(1, 60, (12,), generator=torch.Generator().manual_seed(i))} for i in range(16)]
    small = get_elastic(universal).resolved.uniform(layers=1)
    trainer = ElasticTrainer(
        model=universal,
        args=arguments(tmp_path, max_steps=30, learning_rate=3e-3),
        train_dataset=data,
        data_collator=default_data_collator,
        sampler=Joint([small]),
        teacher=teacher,
        objective=SimilarityDistillation(),
        embed=lambda returned, inputs: returned["last_hidden_state"].mean(1),
        granularities={"shallow": small},
        measure=lambda: {"score": 1.5},
    )
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < 0.3 * history[0]
    assert {"eval_shallow_score": 1.5, "eval_score": 1.5}.items() <= trainer.evaluate().items()
