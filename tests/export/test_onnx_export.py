from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import ir
from transformers import T5Config, T5ForConditionalGeneration, ViTForImageClassification, ViTForMaskedImageModeling

from elastic.errors import CheckError, CheckpointError, OutputExistsError
from elastic.export import export_onnx, graph, read_bundle, verify_bundle
from elastic.export.inputs import describe_inputs
from elastic.export.runtime.generate import empty_cache
from elastic.extraction import extract
from elastic.families import Skip
from elastic.nested import SkippedModule, make_elastic
from elastic.space import Subnet
from tests.conftest import fitting, portable_subnets
from tests.tiny import SPACE, sweep, tiny_bert, tiny_llama, tiny_vit

KINDS = ["bert", "bert_base", "bert_masked_lm", "llama", "vit"]


def run_graph(bundle_dir, feeds):
    session = onnxruntime.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run_prompt(bundle_dir, feeds):
    return run_graph(bundle_dir, {**feeds, **empty_cache(read_bundle(bundle_dir), len(feeds["input_ids"]))})


def text_feeds(batch, length, seed=0):
    ids = np.random.default_rng(seed).integers(1, 50, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - row :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_agrees_with_the_model(exported, kind):
    report = exported(kind)[1]
    assert report.max_abs_diff < 1e-5
    assert report.tolerance == 1e-4
    assert verify_bundle(report.bundle_dir).max_abs_diff < 1e-5


# Stock models of the other structures are exported above, and in test_decoders.
ALIKE = ("dinov2", "distilbert", "modernbert", "mpnet", "whisper")
DIFFERENT = ("bert", "gpt2", "modernbert", "phi3", "vit")


@pytest.mark.parametrize("universal", sweep(ALIKE), indirect=True)
def test_uniform_subnets_of_every_family_export(universal, tmp_path):
    report = export_onnx(extract(universal, portable_subnets(universal)[0]), tmp_path / "out")
    assert report.max_abs_diff < 1e-5


@pytest.mark.parametrize("universal", sweep(DIFFERENT), indirect=True)
def test_subnets_whose_layers_differ_of_every_family_export(universal, tmp_path):
    different = fitting(universal, Subnet(ffn=(16, 0, 32), heads=(2, 4, 0), hidden=20))
    report = export_onnx(extract(universal, different), tmp_path / "out")
    assert report.max_abs_diff < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 40), (5, 19)])
def test_any_batch_and_length_run(exported, kind, batch, length):
    model, report = exported(kind)
    inputs = describe_inputs(model)
    length = min(length, inputs.max_sizes.get("sequence", length))
    text = inputs.specs[0].name == "input_ids"
    run = run_prompt if kind == "llama" else run_graph
    feeds = text_feeds(batch, length) if text else inputs.sample({"batch": batch}, seed=1)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})[0].numpy()
    actual = run(report.bundle_dir, feeds)[0]
    assert actual.shape == expected.shape
    if text and expected.ndim == 3:
        kept = feeds["attention_mask"] == 1
        actual, expected = actual[kept], expected[kept]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "bert_masked_lm", "llama"])
def test_padding_does_not_reach_the_outputs(exported, kind):
    feeds = text_feeds(3, 9)
    run = run_prompt if kind == "llama" else run_graph
    first = run(exported(kind)[1].bundle_dir, feeds)[0]
    kept = feeds["attention_mask"] == 1
    feeds["input_ids"] = np.where(kept, feeds["input_ids"], 7)
    second = run(exported(kind)[1].bundle_dir, feeds)[0]
    if first.ndim == 3:
        first, second = first[kept], second[kept]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_plain_onnx(exported, kind):
    model, report = exported(kind)
    proto = onnx.load(report.bundle_dir / "model.onnx")
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    assert proto.ir_version == 10
    assert not proto.functions
    assert not proto.graph.value_info
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input):
        assert not part.doc_string
        assert not part.metadata_props
    named = {tensor.name for tensor in proto.graph.initializer} & set(model.state_dict())
    assert any("norm" in name.lower() for name in named)


@pytest.mark.parametrize(
    ("kind", "inputs", "output"),
    [
        ("vit", {"pixel_values": ["batch", 1, 8, 8]}, ["batch", 5]),
        ("bert", {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}, ["batch", 3]),
    ],
)
def test_only_batch_and_sequence_are_free(exported, kind, inputs, output):
    proto = onnx.load(exported(kind)[1].bundle_dir / "model.onnx").graph

    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in proto.input} == inputs
    assert {value.name: shape(value) for value in proto.output} == {"logits": output}


def test_the_manifest_says_what_the_bundle_is(exported):
    report = exported("bert")[1]
    manifest = json.loads((report.bundle_dir / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["kind"] == "onnx"
    assert manifest["model_type"] == "bert"
    assert manifest["architecture"] == "BertForSequenceClassification"
    assert (manifest["opset"], manifest["ir_version"]) == (20, 10)
    assert manifest["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]
    assert manifest["max_sizes"] == {"sequence": 40}
    assert manifest["subnet"] == {"ffn": [64, 32, 64], "heads": [4, 2, 4]}
    assert manifest["cost"] == {"flops": 1000, "batch": 1}
    assert manifest["quality"] == {"accuracy": 0.5}
    assert manifest["preprocess"] == {"mean": [0.5]}
    assert manifest["parity"]["shapes"][1] == {"batch": 3, "sequence": 33}
    assert manifest["parity"]["max_abs_diff"] == report.max_abs_diff
    assert manifest["tools"].keys() >= {"elastic", "torch", "transformers", "onnx", "onnxruntime"}
    assert "unknown" not in manifest["tools"].values()
    on_disk = {p.relative_to(report.bundle_dir).as_posix() for p in report.bundle_dir.rglob("*") if p.is_file()}
    on_disk = {name for name in on_disk if "__pycache__" not in name}
    assert manifest["files"].keys() == on_disk - {"manifest.json"}
    assert "bert-tokenizer.json" in on_disk
    assert report.bytes == sum((report.bundle_dir / name).stat().st_size for name in manifest["files"])


def skip_modules(layer, **skips):
    for path, skip in skips.items():
        setattr(layer, path, SkippedModule(skip))


def test_a_vit_without_some_sublayers_exports(tmp_path):
    config = tiny_vit().config
    config.image_size, config.num_channels = [8, 4], 3
    model = ViTForImageClassification(config)
    layers = model.vit.layers
    skip_modules(layers[0], layernorm_before=Skip.INPUT, attention=Skip.ATTENTION_ZERO)
    skip_modules(layers[1], layernorm_after=Skip.INPUT, mlp=Skip.ZERO)
    report = export_onnx(model, tmp_path / "out")
    assert report.max_abs_diff < 1e-5
    assert report.manifest.inputs[0].shape == ("batch", 3, 8, 4)
    ops = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    assert ops.count("Softmax") == len(layers) - 1


def test_a_bert_without_some_sublayers_exports_with_its_pooler(tmp_path):
    model = tiny_bert().bert
    model.encoder.layer[0].attention = SkippedModule(Skip.ATTENTION_INPUT)
    skip_modules(model.encoder.layer[1], intermediate=Skip.INPUT, output=Skip.RESIDUAL)
    report = export_onnx(model, tmp_path / "out")
    assert report.max_abs_diff < 1e-5
    assert [spec.name for spec in report.manifest.outputs] == ["last_hidden_state", "pooler_output"]


def test_a_llama_without_any_attention_still_takes_a_mask(tmp_path):
    model = tiny_llama()
    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm = SkippedModule(Skip.INPUT)
        layer.self_attn = SkippedModule(Skip.ATTENTION_ZERO, index)
    report = export_onnx(model, tmp_path / "out")
    assert [spec.name for spec in report.manifest.inputs] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in report.manifest.outputs] == ["logits"]
    assert verify_bundle(tmp_path / "out").max_abs_diff < 1e-5


def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "SINGLE_FILE_LIMIT", 1)
    report = export_onnx(tiny_vit(), tmp_path / "out")
    assert "model.onnx.data" in report.manifest.files
    assert verify_bundle(tmp_path / "out").files == len(report.manifest.files)
    (tmp_path / "out" / "model.onnx.data").unlink()
    with pytest.raises(CheckError, match=r"'model.onnx.data' is missing"):
        verify_bundle(tmp_path / "out")


def test_export_is_silent_and_leaves_the_model_as_it_was(tmp_path, capfd, recwarn):
    model = tiny_vit()
    model.train()
    model.vit.layernorm.eval()
    modes = [module.training for module in model.modules()]
    export_onnx(model, tmp_path / "out")
    assert modes == [module.training for module in model.modules()]
    assert model.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


class Different(torch.nn.Module):
    """Computes something else while it is traced."""

    def forward(self, x):
        return x + 0.25 if torch.compiler.is_exporting() else x


def test_a_graph_that_computes_something_else_leaves_nothing(tmp_path):
    model = tiny_vit()
    model.classifier = torch.nn.Sequential(model.classifier, Different())
    with pytest.raises(CheckError, match=r"'logits' differs by 0\.25 at batch \d, and 0\.0001 is allowed") as caught:
        export_onnx(model, tmp_path / "new" / "out")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())
    assert model.config._attn_implementation == "sdpa"


class DependsOnData(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_named_in_one_sentence(tmp_path, capfd):
    model = tiny_vit()
    model.classifier = torch.nn.Sequential(model.classifier, DependsOnData())
    with pytest.raises(CheckpointError, match="ViTForImageClassification cannot be traced") as caught:
        export_onnx(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="exists already"):
        export_onnx(tiny_vit(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_models_that_have_no_graph_are_refused(tmp_path):
    universal = make_elastic(tiny_vit(), SPACE)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    broken = tiny_vit()
    broken.classifier.bias.data[0] = torch.nan
    for model, message in [
        (universal, "universal model.*extract one of them first"),
        (t5, "type 't5' takes 'input_ids' for an encoder and a decoder"),
        (ViTForMaskedImageModeling(tiny_vit().config), "it returns .*reconstruction"),
        (tiny_vit().half(), r"is torch.float16.*dtype=torch.float32"),
        (torch.nn.Linear(2, 2), "a Linear cannot be exported"),
        (broken, "'logits' that is not finite"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            export_onnx(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_extra_files_must_exist_and_not_collide(tmp_path):
    (tmp_path / "model.onnx").touch()
    for file, message in [("absent.json", "there is no file"), ("model.onnx", "has another file 'model.onnx'")]:
        with pytest.raises(CheckpointError, match=message):
            export_onnx(tiny_vit(), tmp_path / "out", extra_files=[tmp_path / file])


def test_operators_outside_the_standard_are_refused():
    x = ir.Value(name="pixel_values", shape=ir.Shape(["batch", 1, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("com.microsoft", "BiasGelu", [x])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(CheckError, match=r"uses com\.microsoft::BiasGelu"):
        graph.check_graph(model, describe_inputs(tiny_vit()).specs, ["logits"])


def test_sample_inputs_are_padded():
    inputs = describe_inputs(tiny_bert())
    sample = inputs.sample({"batch": 3, "sequence": 9}, seed=0)
    assert sample["attention_mask"].sum(axis=1).tolist() == [9, 7, 5]
    assert not sample["input_ids"][sample["attention_mask"] == 0].any()


def test_importing_the_package_does_not_load_torch():
    code = "import sys, elastic.export; elastic.export.read_bundle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folder_is_not_a_package_of_its_own():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "import export"], cwd=root, capture_output=True, text=True, check=False
    )
    assert "import this package as `elastic.export`, not `export`" in done.stderr
