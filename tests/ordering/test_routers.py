"""Routers over calibration data: thresholds for a capacity, and static subnets."""

from __future__ import annotations

import pytest
import torch

from elastic.errors import ElasticError, SpaceError
from elastic.nested import GateKey, Routing, active, add_routers, get_elastic, get_routers, make_elastic, routed
from elastic.ordering import freeze_routers, threshold_for, trace_routers, without
from elastic.space import Subnet
from tests.tiny import SPACE, tiny_vit


def model_with(biases, weight=0.0, what="attention"):
    model = add_routers(make_elastic(tiny_vit(), SPACE), Routing(what, tuple(range(len(biases)))))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for router, bias in zip(get_routers(model).values(), biases, strict=True):
            router.bias.fill_(bias)
            router.weight.copy_(weight * torch.randn(router.weight.shape, generator=generator))
    return model


def batches(count=4):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": 3 * torch.randn(16, 1, 8, 8, generator=generator)} for _ in range(count)]


def test_what_is_used_least_leaves():
    model = model_with([3.0, -3.0, 1.0])
    heads = {1.0: (4, 4, 4), 2 / 3: (4, 0, 4), 1 / 3: (4, 0, 0), 0.0: (0, 0, 0)}
    for capacity, expected in heads.items():
        assert freeze_routers(model, batches(), capacity) == Subnet((64, 64, 64), expected)
    base = Subnet((16, 16, 64), (2, 2, 4))
    assert freeze_routers(model, batches(), 2 / 3, subnet=base) == Subnet((16, 16, 64), (2, 0, 4))


def test_a_frozen_router_that_never_wavered_is_the_subnet():
    model = model_with([3.0, -3.0, 1.0], what="block")
    subnet = freeze_routers(model, batches(), 2 / 3)
    assert subnet == Subnet((64, 0, 64), (4, 0, 4))
    (batch, *_) = batches()
    with torch.no_grad():
        with routed(model):
            expected = model(**batch).logits
        with active(model, subnet):
            assert torch.allclose(model(**batch).logits, expected, atol=1e-6)


def test_usage_decides_before_scores():
    model = model_with([0.2, -0.2], weight=0.5)
    trace = trace_routers(model, batches())
    (least,) = sorted(trace.usage, key=trace.usage.get)[:1]
    assert freeze_routers(model, batches(), 0.5).heads[least.layer] == 0
    assert 0 < trace.capacity < 1


@pytest.mark.parametrize("capacity", [0.25, 0.5, 0.9])
def test_the_threshold_of_a_capacity(capacity):
    model = model_with([0.5, 0.0, -0.5], weight=0.5)
    threshold = threshold_for(model, batches(), capacity)
    assert trace_routers(model, batches(), threshold=threshold).capacity == pytest.approx(capacity, abs=0.02)


def test_the_threshold_lies_in_the_middle_of_those_that_decide_alike():
    model = model_with([3.0, -3.0, 1.0])
    off, lowest_on = (float(torch.sigmoid(torch.tensor(bias))) for bias in (-3.0, 1.0))
    assert threshold_for(model, batches(), 2 / 3) == pytest.approx((off + lowest_on) / 2)
    assert threshold_for(model, batches(), 1.0) == pytest.approx(off / 2)


def test_without_gates():
    full = Subnet((64, 64, 64), (4, 4, 4))
    gates = [GateKey("attention", 0), GateKey("mlp", 1), GateKey("block", 2)]
    assert without(full, gates) == Subnet((64, 0, 0), (0, 4, 0))
    with pytest.raises(SpaceError, match="nothing would stay"):
        without(full, [GateKey("block", layer) for layer in range(3)])


def test_bad_requests():
    model = model_with([3.0, -3.0, 1.0])
    with pytest.raises(SpaceError, match=r"the capacity is 1.5, and must lie between 0 and 1"):
        freeze_routers(model, batches(), 1.5)
    with pytest.raises(ElasticError, match="the routers decided nothing"):
        freeze_routers(model, [], 0.5)
    with pytest.raises(ElasticError, match="has no routers"):
        trace_routers(make_elastic(tiny_vit(), SPACE), batches())
    assert get_elastic(model).active.routed is None
