"""Graphs whose weights lie beside them become what those with weights inside become."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from elastic.export import graph as graph_module
from elastic.export.graph import save_model
from elastic.export.precision.apply import apply_precision
from elastic.export.precision.options import PrecisionOptions


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-static", "int4"])
def test_weights_beside_the_graph(graph_of, monkeypatch, tmp_path, precision):
    graph = graph_of("bert")
    options = PrecisionOptions(calibration=graph.data)
    results = []
    for limit in (graph_module.SINGLE_FILE_LIMIT, 1):
        monkeypatch.setattr(graph_module, "SINGLE_FILE_LIMIT", limit)
        path = tmp_path / str(limit) / "model.onnx"
        path.parent.mkdir()
        save_model(onnx.load(graph.path), path)
        before = sum(file.stat().st_size for file in path.parent.iterdir())
        report = apply_precision(path, precision, options, graph.manifest.inputs, graph.manifest.outputs)
        after = {file.name: file.stat().st_size for file in path.parent.iterdir()}
        assert set(after) == ({"model.onnx"} if limit > 1 else {"model.onnx", "model.onnx.data"})
        assert sum(after.values()) < 0.95 * before
        external = onnx.load(path, load_external_data=False).graph.initializer
        assert any(tensor.external_data for tensor in external) == (limit == 1)
        results.append((type(graph)(path, graph.manifest, graph.data, graph.folder).run(), report))
    (inside, one), (beside, other) = results
    np.testing.assert_array_equal(inside, beside)
    assert one == other


def test_a_mix_is_found_with_weights_beside_the_graph(graph_of, monkeypatch, tmp_path):
    monkeypatch.setattr(graph_module, "SINGLE_FILE_LIMIT", 1)
    graph = graph_of("vit")
    save_model(onnx.load(graph.path), tmp_path / "model.onnx")
    options = PrecisionOptions(calibration=graph.data, sensitivity=True)
    specs = (graph.manifest.inputs, graph.manifest.outputs)
    report = apply_precision(tmp_path / "model.onnx", "int8", options, *specs)
    assert len(report.layers) == 19
    assert all(layer.cosine_loss is not None for layer in report.layers)
