"""The gradient of gates: what routers hear of the loss, whether a gate is on, off or drawn."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch

from elastic.extraction import sample_inputs
from elastic.nested import (
    GateGradient,
    GateKey,
    Routing,
    active,
    add_routers,
    get_elastic,
    get_routers,
    make_elastic,
    routed,
)
from elastic.ordering import without
from tests.nested.test_routing import WHATS, disagreeing
from tests.tiny import SPACE, tiny_vit


@pytest.mark.parametrize("what", WHATS)
def test_a_gate_that_is_off_learns(universal, what):
    inputs = disagreeing(universal, what)
    # All gates off, and each router must still hear of it.
    with routed(universal, threshold=1 - 1e-6) as trace:
        universal(**inputs)[0].square().mean().backward()
    assert trace.capacity == 0.0
    for name, router in get_routers(universal).items():
        assert router.weight.grad is not None and router.weight.grad.abs().sum() > 0, name


def test_gradients_of_gates_are_tame_whether_on_or_off(universal):
    """A norm after the gate would see zeros where it is off, and amplify; or hide the gate where it is on."""
    inputs = disagreeing(universal, layers=(1,))
    for threshold in (1e-6, 1 - 1e-6):
        with routed(universal, threshold=threshold) as trace:
            result = universal(**inputs)[0]
        (gate,) = trace.gates.values()
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((result * weights).sum(), gate)
        assert torch.isfinite(gradient).all()
        assert 1e-4 < gradient.abs().max() < 1e3


@pytest.mark.parametrize("what", ["attention", "block"])
@pytest.mark.parametrize("gradient", get_args(GateGradient))
def test_checkpointing_recomputes_the_gates_of_the_forward(universal, what, gradient):
    if not universal.supports_gradient_checkpointing:
        pytest.skip("transformers cannot checkpoint this model")
    inputs = disagreeing(universal, what)

    def gradients(model):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.zero_grad()
        torch.manual_seed(0)
        with routed(model, gradient=gradient) as trace:
            loss = model(**inputs, **({"use_cache": False} if model.can_generate() else {}))[0].square().mean()
        loss = loss + torch.cat(list(trace.gates.values())).mean()
        loss.backward()  # outside of the block, on purpose
        return {name: p.grad for name, p in model.named_parameters()}

    copied = copy.deepcopy(universal)
    copied.activation_checkpointing_enable({"use_reentrant": False})
    expected, actual = gradients(universal), gradients(copied)
    for name, gradient in expected.items():
        assert (gradient is None) == (actual[name] is None), name
        if gradient is not None:
            assert torch.allclose(gradient, actual[name], atol=1e-6), name


@pytest.mark.parametrize("on", [True, False])
def test_the_interpolated_gradient_is_what_skipping_changes(on):
    """Its mean over many rows of one image is a difference of losses; the straight-through one is not."""
    model = make_elastic(tiny_vit(), SPACE).eval()
    add_routers(model, Routing("attention", (1,), initial_bias=1.0 if on else -1.0))
    pixels = sample_inputs(model.config, batch=1)["pixel_values"].expand(2000, -1, -1, -1)
    bias = get_routers(model)["attention_1"].bias

    def loss(rows):
        return (8.0 * model(pixel_values=rows)[0][:, 0]).exp().mean()

    def estimate(gradient):
        with routed(model, gradient=gradient):
            (found,) = torch.autograd.grad(loss(pixels), bias)
        score = torch.sigmoid(bias.detach())
        return float(found / (score * (1.0 - score)))

    torch.manual_seed(0)
    estimates = {gradient: estimate(gradient) for gradient in get_args(GateGradient)}
    with torch.no_grad():
        computed = loss(pixels[:1])
        with active(model, without(get_elastic(model).resolved.largest, [GateKey("attention", 1)])):
            difference = float(computed - loss(pixels[:1]))
    assert estimates["interpolated"] == pytest.approx(difference, rel=0.02)
    assert estimates["straight_through"] != pytest.approx(difference, rel=0.1)


def test_one_gate_of_a_sequence_takes_the_gradient_on_average():
    model = make_elastic(tiny_vit(), SPACE).eval()
    inputs = disagreeing(model, layers=(0, 1, 2))
    scores = []

    def keep(router, args, score):
        score.retain_grad()
        scores.append(score)

    for router in get_routers(model).values():
        router.register_forward_hook(keep)
    torch.manual_seed(0)
    with routed(model, gradient="interpolated") as trace:
        model(**{name: tensor.repeat_interleave(400, 0) for name, tensor in inputs.items()})[
            0
        ].square().sum().backward()
    drawn = torch.stack([score.grad != 0 for score in scores]).double()
    assert drawn.sum(0).mean() == pytest.approx(1.0, abs=0.1)
    assert drawn.mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    assert all(((gate == 0) | (gate == 1)).all() for gate in trace.gates.values())
