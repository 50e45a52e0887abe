from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from elastic.errors import CheckError, CheckpointError
from elastic.export import bench_bundle, export_onnx, parity, read_source, verify_bundle
from tests.tiny import MODELS, tiny_bert


def test_an_int8_embedder_is_smaller_and_says_how_alike_it_is(embedder, exported_embedder, tmp_path):
    source = read_source(embedder)
    small = export_onnx(source.model, tmp_path / "small", precision="int8", **source.details)
    cosine = small.manifest.quality["cosine_to_fp32"]
    assert 0.97 < cosine["min"] <= cosine["mean"] < 1
    assert small.similarity.mean == cosine["mean"]
    assert small.manifest.parity.precision == "int8"
    proto = onnx.load(tmp_path / "small" / "model.onnx")
    assert {node.domain for node in proto.graph.node} == {""}
    assert proto.ir_version == 10
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    scales = [tensor for name, tensor in weights.items() if name.endswith("T_scale") and len(tensor.dims) == 1]
    assert scales, "no weight has a scale per channel"
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights.values())
    assert exported_embedder.manifest.quality is None
    assert verify_bundle(tmp_path / "small").precision == "int8"
    assert bench_bundle(tmp_path / "small", rounds=1).median_ms > 0


def test_an_int8_graph_that_is_too_far_off_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(parity.MIN_COSINES, "int8", 1.1)
    with pytest.raises(CheckError, match=r"outputs have a cosine of [01]\.\d+ to the model's, and 1.1 is needed"):
        export_onnx(tiny_bert(), tmp_path / "out", precision="int8")
    with pytest.raises(CheckpointError, match="unknown precision 'int9'; did you mean 'int8'"):
        export_onnx(tiny_bert(), tmp_path / "out", precision="int9")
    assert not list(tmp_path.iterdir())


def test_a_stock_folder_that_answers_questions(tmp_path):
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=60)
    model = BertForQuestionAnswering(config).eval()
    model.save_pretrained(tmp_path / "stock")
    source = read_source(tmp_path / "stock")
    report = export_onnx(source.model, tmp_path / "out", **source.details)
    outputs = {spec.name: spec.shape for spec in report.manifest.outputs}
    assert outputs == dict.fromkeys(("start_logits", "end_logits"), ("batch", "sequence"))
    sample = np.load(tmp_path / "out" / "samples.npz")
    with torch.no_grad():
        expected = model(torch.from_numpy(sample["0.inputs.input_ids"])).end_logits.numpy()
    np.testing.assert_allclose(sample["0.outputs.end_logits"], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["camembert", "vit"])
def test_stock_folders_of_other_heads(tmp_path, kind):
    MODELS[kind]().save_pretrained(tmp_path / "stock")
    source = read_source(tmp_path / "stock")
    report = export_onnx(source.model, tmp_path / "out", **source.details)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["subnet"] is None
    assert report.max_abs_diff < 1e-5
