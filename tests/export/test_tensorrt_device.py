"""Engines on a real GPU: `pytest -m tensorrt -rs`. Skipped, with the reason, where TensorRT or a GPU is missing."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from elastic.export import TensorRTTarget, export_family
from elastic.export.runtime.bench import bench
from elastic.export.runtime.build import build
from elastic.export.runtime.device import open_device, open_tensorrt
from elastic.export.runtime.errors import BundleError
from elastic.export.runtime.generate import generate
from elastic.export.runtime.members import Session
from elastic.export.runtime.session import Bundle
from elastic.export.runtime.verify import verify
from tests.conftest import make_tiny_elastic
from tests.export.small_bundles import TEXT_INPUTS, draw, write_bundle
from tests.export.test_family import HALF, named
from tests.tiny import MODELS


def missing() -> str | None:
    """Say why no engine can be built here."""
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT is not installed: nothing of this file was tested"
    try:
        open_device(open_tensorrt())
    except BundleError as error:
        return f"no usable GPU, so that nothing of this file was tested: {error}"
    return None


REASON = missing()
pytestmark = [pytest.mark.tensorrt, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.mark.parametrize("kind", ["text", "decoder"])
@pytest.mark.parametrize("stripped", [False, True])
def test_an_engine_reproduces_the_samples(tmp_path, kind, stripped):
    folder = write_bundle(tmp_path / kind, kind)
    assert build(folder, stripped=stripped, workspace=256 << 20).reused == 0
    assert build(folder, stripped=stripped, workspace=256 << 20).reused == 1
    report = verify(folder)
    assert report.backend == "tensorrt"
    assert report.max_abs_diff < 1e-4


def test_cuda_graphs_and_padding_change_nothing(tmp_path):
    folder = write_bundle(tmp_path / "text")
    build(folder)
    engine, reference = Bundle.open(folder), Bundle.open(folder, backend="onnxruntime")
    for seed in range(6):
        inputs = draw(TEXT_INPUTS, {"batch": 1 + seed % 2, "sequence": 5 + seed % 3}, seed)
        for name, expected in reference.run(inputs).items():
            np.testing.assert_allclose(engine.run(inputs)[name], expected, atol=1e-4)
    assert any(context.graph for context in engine.session._contexts.values())
    assert bench(folder, sequence=8, rounds=5).backend == "tensorrt"


def test_a_decoder_generates_the_same_tokens(tmp_path):
    folder = write_bundle(tmp_path / "decoder", "decoder")
    build(folder)
    ids = np.array([[3, 1, 4]])
    expected = generate(Bundle.open(folder, backend="onnxruntime"), ids, max_new_tokens=6)
    np.testing.assert_array_equal(generate(Bundle.open(folder), ids, max_new_tokens=6), expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_family_of_engines_shares_one_file_of_weights(tmp_path, precision, stripped):
    model, folder = make_tiny_elastic(MODELS["bert"]()), tmp_path / "family"
    target = TensorRTTarget(("sequence=8", "sequence=16"))
    export_family(model, named(model, M=HALF), folder, precision=precision, target=target)
    assert build(folder, subnets=["M"], stripped=stripped).reused == 0
    assert Session.open(folder).names == ("M",)
    assert build(folder, stripped=stripped).reused == 1
    report = verify(folder)
    assert (report.backend, report.subnets.keys()) == ("tensorrt", {"XL", "M"})
    session, reference = Session.open(folder), Session.open(folder, backend="onnxruntime")
    tolerance = session.manifest.parity.tolerance
    for seed, name in enumerate(["XL", "M"] * 3):
        inputs = draw(session.manifest.inputs, {"sequence": 5 + seed}, seed)
        for output, expected in reference.run(inputs, subnet=name).items():
            np.testing.assert_allclose(session.run(inputs, subnet=name)[output], expected, atol=tolerance)
    session.warm_up(inputs)
    assert session.choose(inputs, 1e6) == "XL"
