from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import BertForMaskedLM
from typer.testing import CliRunner

from elastic.checkpoint import copy_companions, save_checkpoint
from elastic.cli.app import app
from elastic.errors import CheckpointError
from elastic.export import export_onnx, read_source, run_bundle, verify_bundle
from elastic.extraction import extract
from elastic.nested import get_elastic, make_elastic
from elastic.record import CheckpointRecord
from elastic.space import SearchSpace, Subnet
from tests.embedder import WORDS

TEXTS = [" ".join(WORDS[i : i + 1 + i % 7]) for i in range(12)] + [" ".join(WORDS * 3)]


def run_texts(bundle, tmp_path, texts=TEXTS):
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n\n")
    run_bundle(bundle, tmp_path / "texts.txt", tmp_path / "out.npz")
    return np.load(tmp_path / "out.npz")["sentence_embedding"]


def export(folder, bundle, **options):
    source = read_source(folder, **options)
    return export_onnx(source.model, bundle, **source.details)


def test_a_bundle_embeds_texts_as_sentence_transformers_does(embedder, exported_embedder, tmp_path):
    report = exported_embedder
    assert [spec.name for spec in report.manifest.inputs] == ["input_ids", "attention_mask"]
    assert report.manifest.outputs[0].shape == ("batch", 32)
    assert report.manifest.preprocess["tokenizer"]["file"] == "tokenizer.json"
    assert report.manifest.max_sizes == {"sequence": 32}
    expected = SentenceTransformer(str(embedder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(run_texts(report.bundle_dir, tmp_path), expected, atol=1e-5)
    assert verify_bundle(report.bundle_dir).max_abs_diff < 1e-5


@pytest.mark.parametrize("mode", ["cls", "max", "weightedmean", "lasttoken"])
def test_every_pooling_is_in_the_graph(embedder, tmp_path, mode):
    parts = [Transformer(str(embedder)), Pooling(32, pooling_mode=mode), Dense(32, 16), Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu")
    model.save(str(tmp_path / "embedder"))
    export(tmp_path / "embedder", tmp_path / "bundle")
    np.testing.assert_allclose(run_texts(tmp_path / "bundle", tmp_path), model.encode(TEXTS), atol=1e-5)


def test_embeddings_are_cut_before_they_are_normalised(embedder, tmp_path):
    export(embedder, tmp_path / "bundle", embedding_dim=8)
    whole = SentenceTransformer(str(embedder), device="cpu").encode(TEXTS)[:, :8]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(run_texts(tmp_path / "bundle", tmp_path), expected, atol=1e-5)


def test_an_extracted_embedder_with_different_layers(embedder, tmp_path):
    universal = make_elastic(read_source(embedder).model.transformer, SearchSpace(ffn=[0.25, 0.5, 1.0]))
    subnet = Subnet(ffn=(16, 0, 32), heads=(2, 4, 0))
    small = extract(universal, subnet)
    folder = tmp_path / "extracted"
    folder.mkdir()
    dims = get_elastic(universal).dims
    record = CheckpointRecord(kind="extracted", family="bert", elastic_version="0", input_shapes={},
                              subnet={**subnet.to_dict(), "embedding_dim": 24}, universal_dims=dims)  # fmt: skip
    save_checkpoint(small, record, folder)
    copy_companions(embedder, folder)
    report = export(folder, tmp_path / "bundle")
    assert report.manifest.outputs[0].shape == ("batch", 24)
    assert report.manifest.subnet["ffn"] == [16, 0, 32]
    model = SentenceTransformer(str(embedder), device="cpu")
    features = model.tokenize(TEXTS)
    with torch.no_grad():
        states = small(features["input_ids"], features["attention_mask"]).last_hidden_state
    weights = features["attention_mask"][..., None]
    pooled = ((states * weights).sum(1) / weights.sum(1))[:, :24]
    expected = torch.nn.functional.normalize(pooled).numpy()
    np.testing.assert_allclose(run_texts(tmp_path / "bundle", tmp_path), expected, atol=1e-5)


def test_the_weights_have_the_names_of_the_checkpoint(exported_embedder):
    names = {tensor.name for tensor in onnx.load(exported_embedder.bundle_dir / "model.onnx").graph.initializer}
    assert "embeddings.word_embeddings.weight" in names


def test_texts_without_tokenizers_end_in_one_sentence(exported_embedder, tmp_path):
    shutil.copytree(exported_embedder.bundle_dir, tmp_path / "bundle")
    (tmp_path / "texts.txt").write_text("the cat\n")
    code = (
        "import runpy, sys\nfor name in ('torch', 'elastic', 'tokenizers', 'transformers'): sys.modules[name] = None\n"
        "runpy.run_module('runtime', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "run", ".", "--input", tmp_path / "texts.txt", "-o", tmp_path / "o.npz"]
    done = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: texts need the package tokenizers")
    assert done.stderr.count("\n") == 1


def test_folders_that_cannot_be_exported_are_refused(embedder, tmp_path):
    plain = embedder.with_name("embedder-transformer")
    foreign = tmp_path / "foreign"
    SentenceTransformer(str(embedder), device="cpu").save(str(foreign))
    modules = json.loads((foreign / "modules.json").read_text())
    (foreign / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "type": "mine.Pooling"}]))
    static = tmp_path / "static"
    static.mkdir()
    (static / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}])
    )
    for folder, options, message in [
        (tmp_path / "absent", {}, "is not a folder"),
        (tmp_path, {}, "has no config.json"),
        (plain, {"embedding_dim": 8}, "is no embedder"),
        (foreign, {}, "the module mine.Pooling, which is not one of sentence-transformers"),
        (static, {}, "does not begin with a Transformer"),
        (embedder, {"embedding_dim": 33}, "have 32 dimensions, not 33"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            export(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_stock_checkpoint_whose_head_is_missing_is_refused(embedder, tmp_path):
    plain = embedder.with_name("embedder-transformer")
    export(plain, tmp_path / "base")
    config = json.loads((plain / "config.json").read_text())
    folder = tmp_path / "headless"
    BertForMaskedLM.from_pretrained(plain).bert.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="'bert.pooler.dense.bias' is missing"):
        read_source(folder)


def test_the_commands_of_an_embedder(embedder, tmp_path):
    def elastic(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    bundle, output = tmp_path / "bundle", tmp_path / "out.npz"
    done = elastic("export", embedder, "--to", "onnx", "--embedding-dim", 16, "-o", bundle)
    assert done.exit_code == 0, done.stderr
    (tmp_path / "texts.txt").write_text("the cat\nthe dog runs\n")
    done = elastic("run", bundle, "--input", tmp_path / "texts.txt", "-o", output, "--json")
    assert json.loads(done.stdout)["outputs"] == {"sentence_embedding": [2, 16]}
    assert np.allclose(np.linalg.norm(np.load(output)["sentence_embedding"], axis=1), 1)
    done = elastic("run", bundle, "--input", tmp_path / "texts.txt", "-o", tmp_path / "more.npz", "--max-new-tokens", 3)
    assert done.exit_code == 2
    assert "is no decoder with a key-value cache" in done.stderr
