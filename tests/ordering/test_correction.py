"""Least squares makes up for what an extracted model has lost."""

from __future__ import annotations

import pytest
import torch

from elastic.errors import ElasticError
from elastic.extraction import extract, sample_inputs
from elastic.families import get_family
from elastic.nested import make_elastic
from elastic.ordering import correct
from elastic.ordering.correction import _Judge, kept_back
from elastic.space import Subnet
from tests.conftest import make_tiny_elastic
from tests.tiny import MODELS, SPACE, tiny_bert, tiny_llama, tiny_vit

NARROW = Subnet(ffn=(16, 16, 16), heads=(4, 4, 4))
PER_LAYER = Subnet(ffn=(16, 0, 64), heads=(4, 4, 0))


def error(universal, small, inputs):
    with torch.no_grad():
        return float((universal(**inputs)[0] - small(**inputs)[0]).square().mean())


@pytest.mark.parametrize("subnet", [NARROW, PER_LAYER])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_corrected_models_are_nearer_to_the_full_one(name, subnet, batches):
    universal = make_tiny_elastic(MODELS[name]())
    small = extract(universal, subnet)
    calibration = batches(universal, 12)
    inputs = calibration[0]
    before = error(universal, small, inputs)
    weights = {key: value.clone() for key, value in universal.state_dict().items()}
    correct(universal, subnet, small, calibration)
    # Where a norm or a scale lies in between, only what a sub-layer itself lost can be made up for.
    limit = 1.1 if get_family(universal.config).scales_before_adding else 1.0
    assert error(universal, small, inputs) < limit * before
    assert all(torch.equal(weights[key], value) for key, value in universal.state_dict().items())


@pytest.mark.parametrize("method", ["least_squares", "mean"])
def test_massive_activations_do_no_harm(method, batches):
    """A neuron that is huge on few tokens is gone: making up for it must not cost all the other tokens."""
    model = tiny_bert()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[-1] *= 100.0
            layer.output.dense.weight[3, -1] = 50.0
    universal = make_elastic(model, SPACE)
    small = extract(universal, NARROW)
    calibration = batches(universal, 8)
    with torch.no_grad():
        judge = _Judge(universal, small, calibration)
        before = judge.error()
        correct(universal, NARROW, small, calibration, method=method)
        assert judge.error() <= before


def test_the_batches_that_judge_are_few_and_not_fitted_to():
    numbered = [{"index": index} for index in range(40)]
    assert [batch["index"] for batch in kept_back(numbered)] == [1, 5, 9, 13]
    assert [batch["index"] for batch in kept_back(numbered[:1])] == [0]


def test_nothing_lost_is_nothing_changed(batches):
    universal = make_elastic(tiny_vit(), SPACE)
    full = Subnet(ffn=(64,) * 3, heads=(4,) * 3)
    small = extract(universal, full)
    correct(universal, full, small, batches(universal))
    assert error(universal, small, sample_inputs(universal.config, batch=4, seed=7)) < 1e-10


def test_mean_updates_change_biases_alone(batches):
    universal = make_elastic(tiny_vit(), SPACE)
    subnet = Subnet(ffn=(64, 0, 64), heads=(4, 0, 4))
    small = extract(universal, subnet)
    weights = {name: p.clone() for name, p in small.named_parameters()}
    calibration = batches(universal, 8)
    before = error(universal, small, calibration[0])
    correct(universal, subnet, small, calibration, method="mean")
    changed = {name for name, p in small.named_parameters() if not torch.equal(p, weights[name])}
    assert changed
    assert all(name.endswith("bias") for name in changed)
    assert error(universal, small, calibration[0]) < before


def test_mean_updates_need_biases(batches):
    universal = make_elastic(tiny_llama(), SPACE)
    with pytest.raises(ElasticError, match="'llama' have no biases that could hold a mean update"):
        correct(universal, NARROW, extract(universal, NARROW), batches(universal), method="mean")


def test_no_data_is_refused():
    universal = make_elastic(tiny_vit(), SPACE)
    with pytest.raises(ElasticError, match="no calibration data with usable rows"):
        correct(universal, NARROW, extract(universal, NARROW), [])
