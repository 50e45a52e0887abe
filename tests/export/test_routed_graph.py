from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import elastic
from elastic.errors import CheckpointError, ElasticError
from elastic.export import NamedSubnet, export_elastic, verify_bundle
from elastic.export.inputs import describe_inputs, forward_outputs
from elastic.export.runtime.session import Bundle
from elastic.nested import Routing, active, routed
from elastic.nested.routing import get_routers
from elastic.space import Subnet
from tests.conftest import make_tiny_elastic
from tests.tiny import MODELS, tiny_bert, tiny_llama

LARGEST = NamedSubnet("L", Subnet((64, 64, 64), (4, 4, 4)))
NO_ATTENTION = NamedSubnet("S", Subnet((32, 0, 16), (0, 4, 0)))


def make_routed(name, what):
    """Return a model whose routers disagree about the rows of a batch."""
    model = elastic.add_routers(make_tiny_elastic(MODELS[name]()), Routing(what, (0, 1, 2)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for router in get_routers(model).values():
            torch.nn.init.normal_(router.weight, std=1.5)
            torch.nn.init.zeros_(router.bias)
    return model


def thresholds_between(model, subnet, inputs, tensors):
    """Return thresholds that some rows reach, and others do not."""
    with active(model, subnet), routed(model, 1e-6, dense=False) as trace:
        forward_outputs(model, inputs, tensors)
    for scores in trace.scores.values():
        low, high = scores.sort().values[2:4].tolist()
        if high - low > 1e-5:  # ONNX Runtime's sigmoid is exact to 1e-8 or so, and no score may be a matter of that.
            yield (low + high) / 2


@pytest.mark.parametrize(("name", "what"), [("bert", "attention"), ("vit", "block"), ("modernbert", "mlp")])
def test_each_row_computes_what_its_routers_ask_for(tmp_path, name, what):
    model = make_routed(name, what)
    report = export_elastic(model, [LARGEST, NO_ATTENTION], tmp_path / "bundle", routed=True)
    assert [member.name for member in report.manifest.members] == ["L", "L-routed", "S", "S-routed"]
    assert report.manifest.members[1].controls["router_thresholds"] == [0.5] * 3
    verify_bundle(report.bundle_dir)
    bundle, inputs = Bundle.open(report.bundle_dir, threads=1), describe_inputs(model)
    arrays = inputs.sample({"batch": 6, "sequence": 11}, seed=3)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    seen = set()
    for named in (LARGEST, NO_ATTENTION):
        controls = report.manifest.member(named.name).controls
        for threshold in thresholds_between(model, named.subnet, inputs, tensors):
            with active(model, named.subnet), routed(model, threshold, dense=False) as trace:
                expected = forward_outputs(model, inputs, tensors)["logits"].numpy()
            seen.update(trace.usage.values())
            given = {
                spec.name: np.array(controls[spec.name], spec.dtype) for spec in report.manifest.controls
            } | {"router_thresholds": np.full(3, threshold, np.float32)}  # fmt: skip
            actual = replace(bundle, controls=given).run(arrays)["logits"]
            alone = replace(bundle, controls=given).run({key: array[2:3] for key, array in arrays.items()})["logits"]
            if expected.ndim == 3 and "attention_mask" in arrays:
                kept = arrays["attention_mask"] == 1
                np.testing.assert_allclose(alone[0][kept[2]], actual[2][kept[2]], atol=1e-5)
                expected, actual = expected[kept], actual[kept]
            else:
                np.testing.assert_allclose(alone[0], actual[2], atol=1e-5)
            np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert any(0.0 < share < 1.0 for share in seen)


def test_models_without_routers_and_decoders_are_refused(tmp_path):
    with pytest.raises(ElasticError, match="no routers"):
        export_elastic(make_tiny_elastic(tiny_bert()), [LARGEST], tmp_path / "no", routed=True)
    decoder = elastic.add_routers(make_tiny_elastic(tiny_llama()), Routing("attention", (0, 1)))
    with pytest.raises(CheckpointError, match="when the prompt is read"):
        export_elastic(decoder, [LARGEST], tmp_path / "no", routed=True)
