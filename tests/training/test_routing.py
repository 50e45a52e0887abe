"""Training routers: the capacity term, what is frozen, the log, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import default_data_collator, set_seed

from elastic.errors import ElasticError, RecipeError
from elastic.nested import GateKey, Routing, add_routers, get_elastic, get_routers, make_elastic, routed
from elastic.training import Capacity, Joint, RoutedTrainer, RouterTraining, gate_report
from elastic.training.routing import gate_entropy
from tests.tiny import SPACE, tiny_llama, tiny_vit
from tests.training.test_trainer import arguments, images, losses, texts

KEYS = (GateKey("attention", 0), GateKey("attention", 1))


def gates(first, second):
    return {
        key: torch.tensor(values, dtype=torch.float32, requires_grad=True)
        for key, values in zip(KEYS, (first, second), strict=True)
    }


def routed_model(build=tiny_vit, **routing):
    return add_routers(make_elastic(build(), SPACE), Routing(**{"what": "attention", "layers": (0, 1), **routing}))


def trainer_for(folder, model, data, training, **changes):
    return RoutedTrainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
        sampler=Joint([get_elastic(model).resolved.largest]),
        routers=training,
    )


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (Capacity(0.5), 0.125),
        (Capacity(0.75, weight=2.0), 0.25),
        (Capacity(0.75, penalty="above"), 0.0),
        (Capacity(0.5, per_layer=True), (0.25 + 0.5) / 2),
        (Capacity((0.25, 1.0), per_layer=True), 0.0),
        (Capacity((0.25, 0.5), per_layer=True, penalty="above"), 0.25),
        (Capacity((0.0, 1.0)), 0.125),
    ],
)
def test_the_penalty_of_a_capacity(capacity, expected):
    assert float(capacity(gates([0, 0, 0, 1], [1, 1, 1, 1]), KEYS)) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.floats(0, 1))
def test_the_penalty_pulls_towards_the_capacity(on, target):
    given_gates = gates(on, on)
    penalty = Capacity(target)(given_gates, KEYS)
    penalty.backward()
    share = sum(on) / len(on)
    pull = float(given_gates[KEYS[0]].grad.sum())
    assert pull * (share - target) >= 0
    if abs(share - target) > 1e-4:
        assert pull != 0


def test_a_subnet_without_a_routed_sub_layer_is_judged_by_the_others():
    penalty = Capacity((0.0, 1.0), per_layer=True)({KEYS[1]: torch.tensor([0.0, 1.0])}, KEYS)
    assert float(penalty) == pytest.approx(0.5)


def test_evaluation_counts_the_gates_of_all_processes(tmp_path, monkeypatch):
    model = routed_model(initial_bias=5.0)
    resolved = get_elastic(model).resolved
    trainer = trainer_for(tmp_path, model, images(), RouterTraining(Capacity(0.5)))
    trainer.granularities = {"XL": resolved.largest, "S": resolved.uniform(ffn=resolved.ffn[0])}
    assert trainer.evaluate()["eval_capacity"] == 1.0
    # Another process that saw as many examples, with every gate off.
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda counts, reduction: counts * torch.tensor([1.0, 2.0]))
    assert trainer.evaluate()["eval_capacity"] == 0.5
    assert trainer.usage == {subnet: dict.fromkeys(KEYS, 0.5) for subnet in trainer.granularities.values()}


def test_entropy_says_whether_a_gate_looks_at_its_input():
    assert gate_entropy(0.5) == 1.0
    assert gate_entropy(0.0) == gate_entropy(1.0) == 0.0
    report = gate_report({KEYS[0]: 0.5, KEYS[1]: 1.0})
    assert report == {
        "capacity": 0.75,
        "gate_entropy": 0.5,
        "capacity_attention_0": 0.5,
        "capacity_attention_1": 1.0,
        "gate_entropy_attention_0": 1.0,
        "gate_entropy_attention_1": 0.0,
    }


@pytest.mark.parametrize("mode", ["tune", "joint"])
def test_what_is_trained(tmp_path, mode):
    model = routed_model()
    before = copy.deepcopy(model.state_dict())
    trainer_for(tmp_path, model, images(), RouterTraining(Capacity(0.2), mode)).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    ours = {name for name in before if name.startswith("elastic_routers.")}
    assert changed >= ours
    assert (changed == ours) == (mode == "tune")


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("what", ["attention", "mlp", "block"])
def test_training_reaches_the_capacity(tmp_path, what, per_layer):
    model = routed_model(what=what)
    training = RouterTraining(Capacity(0.5, weight=3.0, per_layer=per_layer))
    trainer = trainer_for(tmp_path, model, images(64), training, max_steps=80, learning_rate=3e-2, optim="adamw_torch",
                          lr_scheduler_type="linear", per_device_train_batch_size=16)  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_capacity"] == pytest.approx(0.5, abs=0.25)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all({"capacity", "gate_entropy", f"capacity_{what}_0", f"gate_entropy_{what}_1"} <= set(e) for e in logged)
    assert logged[0]["capacity"] == 1.0


def test_evaluation_runs_what_the_routers_leave(tmp_path):
    model = routed_model()
    with torch.no_grad():
        get_routers(model)["attention_1"].bias.fill_(-1.0)
    trainer = trainer_for(tmp_path, model, images(), RouterTraining(Capacity(0.5)))
    metrics = trainer.evaluate()
    assert (metrics["eval_capacity_attention_0"], metrics["eval_capacity_attention_1"]) == (1.0, 0.0)
    with torch.no_grad(), routed(model):
        expected = model.eval()(**default_data_collator(images())).loss
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        unrouted = model(**default_data_collator(images())).loss
    assert metrics["eval_loss"] != pytest.approx(float(unrouted), rel=5e-5)


@pytest.mark.parametrize("build", [tiny_vit, tiny_llama])
def test_accumulation_changes_nothing(tmp_path, build):
    data = images() if build is tiny_vit else texts()
    results = []
    for batch, accumulation in ((8, 1), (2, 4)):
        set_seed(0)
        model = routed_model(build)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        # A target of 0 makes the term linear, so that the mean over parts is that of the whole.
        trainer_for(tmp_path, model, data, RouterTraining(Capacity(0.0), "joint", "straight_through"), optim="sgd",
                    per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation).train()  # fmt: skip
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", ["tune", "joint"])
def test_resumed_is_uninterrupted(tmp_path, mode):
    settings = {"optim": "adamw_torch", "max_steps": 6, "save_strategy": "steps", "save_steps": 3,
                "learning_rate": 1e-2}  # fmt: skip
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        set_seed(0)
        model = routed_model()
        trainer = trainer_for(tmp_path, model, images(), RouterTraining(Capacity(0.3), mode), **settings)
        trainer.train(resume_from_checkpoint=resume)
        runs.append((losses(trainer)[-3:], model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, tensor in runs[0][1].items():
        assert torch.equal(tensor, runs[1][1][name]), name
    assert (tmp_path / "checkpoint-6" / "routers.safetensors").is_file()


def test_activation_checkpointing_changes_nothing(tmp_path):
    results = []
    for checkpointing in (False, True):
        set_seed(0)
        model = routed_model()
        trainer_for(tmp_path, model, images(), RouterTraining(Capacity(0.3), "joint"), optim="sgd",
                    activation_checkpointing=checkpointing).train()  # fmt: skip
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ElasticError, match="reentrant"):
        trainer_for(tmp_path, routed_model(), images(), RouterTraining(Capacity(0.3)), activation_checkpointing=True,
                    activation_checkpointing_kwargs={"use_reentrant": True})  # fmt: skip
    with pytest.raises(RecipeError, match="3 capacities are given, and the model has 2 routers"):
        trainer_for(tmp_path, routed_model(), images(), RouterTraining(Capacity((0.1, 0.2, 0.3))))
    with pytest.raises(RecipeError, match=r"capacity of routers is 1.5, and must lie between 0 and 1"):
        Capacity(1.5)
    with pytest.raises(ElasticError, match="has no routers"):
        trainer_for(tmp_path, make_elastic(tiny_vit(), SPACE), images(), RouterTraining(Capacity(0.3)))
