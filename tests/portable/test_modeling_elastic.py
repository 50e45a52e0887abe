"""Checkpoints whose layers differ load in any transformers, with the code that lies beside them, and only with it."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from elastic.checkpoint import copy_companions
from elastic.extraction import extract, sample_inputs
from elastic.nested import get_elastic, make_elastic
from elastic.portable import modeling_elastic
from elastic.space import SearchSpace, Subnet
from tests.conftest import fitting
from tests.embedder import WORDS, write_embedder
from tests.tiny import DECODERS, MODELS

CODE = Path(modeling_elastic.__file__)
SUBNETS = {
    "skips": Subnet(ffn=(64, 0, 64), heads=(4, 4, 4)),
    "both": Subnet(ffn=(13, 0, 64), heads=(2, 4, 0)),
    "narrow": Subnet(ffn=(13, 64, 64), heads=(4, 4, 2), hidden=20),
    "first": Subnet(ffn=(0, 64, 20), heads=(0, 2, 4)),
}


def in_a_process_without_elastic(tmp_path, *command):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(_universal_models, tmp_path_factory):
    """What a process without Elastic finds of every family's checkpoints, and what is true of them."""
    root = tmp_path_factory.mktemp("portable")
    truth = {}
    for name, universal in _universal_models.items():
        for kind, subnet in SUBNETS.items():
            small = extract(universal, fitting(universal, subnet)).eval()
            folder = root / f"{name}-{kind}"
            small.save_pretrained(folder)
            inputs = sample_inputs(universal.config, batch=2)
            torch.save(inputs, folder / "inputs.pt")
            with torch.no_grad():
                torch.save(small(**inputs)[0], folder / "outputs.pt")
            truth[folder.name] = small
    script = Path(__file__).with_name("without_elastic.py")
    return truth, in_a_process_without_elastic(root.parent, str(script), str(root))


@pytest.mark.parametrize("kind", SUBNETS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_loads_without_elastic_and_only_with_its_code(found, name, kind):
    small, seen = found[0][f"{name}-{kind}"], found[1][f"{name}-{kind}"]
    assert seen["class"] == type(small).__name__
    assert seen["wrong keys"] == []
    assert seen["difference"] == seen["mapped difference"] == seen["saved again, difference"] == 0
    assert all(seen["refused"])
    assert seen["dtypes"] == ["torch.bfloat16"]
    assert seen["same config"]
    assert seen["same code"]


@pytest.mark.parametrize("kind", SUBNETS)
@pytest.mark.parametrize("name", DECODERS)
def test_generates_without_elastic(found, name, kind):
    small, seen = found[0][f"{name}-{kind}"], found[1][f"{name}-{kind}"]
    assert seen["generates alike"]
    prompt = sample_inputs(small.config, batch=2)["input_ids"][:, :5]
    mask = torch.ones_like(prompt)
    assert small.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False).tolist() == seen["generated"]


def test_the_code_needs_torch_and_transformers_only(universal, tmp_path):
    extract(universal, fitting(universal, SUBNETS["both"])).save_pretrained(tmp_path)
    assert (tmp_path / CODE.name).read_bytes() == CODE.read_bytes()
    imports = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(CODE.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imports - set(sys.stdlib_module_names) == {"torch", "transformers"}


@pytest.mark.parametrize("universal", ["vit", "llama"], indirect=True)
def test_uniform_subnets_take_no_code_along(universal, tmp_path):
    extract(universal, get_elastic(universal).resolved.uniform(ffn=32)).save_pretrained(tmp_path)
    assert not (tmp_path / CODE.name).exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "elastic", "per_layer_config"} & set(config)


def test_the_configuration_has_transformers_own_keys(universal, tmp_path):
    family = get_elastic(universal).family
    extract(universal, fitting(universal, SUBNETS["both"])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = (config[family.config_part] if family.config_part else config)["per_layer_config"]
    assert list(layers) == ["0", "1", "2"]
    assert layers["1"]["skip"] == ["mlp"]
    assert layers["1"][family.ffn_field] == 0
    assert layers["2"]["skip"] == ["attention"]
    assert layers["2"][family.heads_field] == 0
    assert layers["0"][family.ffn_field] == family.ffn_value(13, get_elastic(universal).dims.hidden)


@pytest.mark.parametrize("universal", ["bert", "llama", "siglip"], indirect=True)
def test_copies_and_pickles(universal):
    small = extract(universal, SUBNETS["both"]).eval()
    inputs = sample_inputs(universal.config, batch=2)
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(copied) is type(small)
        assert copied.config.layer_sizes == small.config.layer_sizes
        with torch.no_grad():
            assert torch.equal(copied(**inputs)[0], small(**inputs)[0])


def test_another_head_on_the_same_layers(found):
    assert found[1]["llama-both"]["another head"] == {"missing": ["score.weight"], "same": True, "labels": 3}


@pytest.mark.parametrize("universal", ["bert"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("per_layer_config"), "does not say the sizes of the layers"),
        (
            lambda config: config["per_layer_config"].pop("2"),
            "the model has 3 layers, and per_layer_config the sizes of 2",
        ),
        (lambda config: config["per_layer_config"]["0"].pop("intermediate_size"), "intermediate_size"),
        (lambda config: config["per_layer_config"]["0"].update(intermediate_size=14), "size"),
    ],
)
def test_contradictions_are_refused(universal, tmp_path, change, message):
    extract(universal, SUBNETS["both"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(Exception, match=message):
        modeling_elastic.BertForSequenceClassification.from_pretrained(tmp_path)


def test_only_classes_of_transformers_are_found():
    assert issubclass(modeling_elastic.BertModel, BertModel)
    assert modeling_elastic.BertModel is modeling_elastic.model_class(BertModel)
    for name in ("NoSuchModel", "AutoModel", "__wrapped__", "pipeline"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling_elastic, name)


def test_sentence_transformers(tmp_path):
    embedder = write_embedder(tmp_path / "embedder")
    universal = make_elastic(BertModel.from_pretrained(embedder), SearchSpace())
    small = extract(universal, SUBNETS["both"]).eval()
    folder = tmp_path / "small"
    small.save_pretrained(folder)
    copy_companions(embedder, folder)
    script = f"""
import sys, json
sys.modules["elastic"] = None
from sentence_transformers import SentenceTransformer
sentences = {WORDS[:4]!r}
first = SentenceTransformer({str(folder)!r}, trust_remote_code=True, device="cpu")
second = SentenceTransformer({str(folder)!r}, model_kwargs={{"trust_remote_code": True}},
                             config_kwargs={{"trust_remote_code": True}}, device="cpu")
first.save({str(tmp_path / "again")!r})
third = SentenceTransformer({str(tmp_path / "again")!r}, trust_remote_code=True, device="cpu")
refused = ""
try:
    SentenceTransformer({str(folder)!r}, device="cpu")
except Exception as error:
    refused = type(error).__name__
tokens = first.tokenize(sentences)
print(json.dumps({{
    "embeddings": [model.encode(sentences).tolist() for model in (first, second, third)],
    "input_ids": tokens["input_ids"].tolist(), "attention_mask": tokens["attention_mask"].tolist(), "refused": refused,
}}))
"""
    seen = in_a_process_without_elastic(tmp_path, "-c", script)
    assert seen["refused"]
    mask = torch.tensor(seen["attention_mask"])
    with torch.no_grad():
        tokens = small(input_ids=torch.tensor(seen["input_ids"]), attention_mask=mask)[0]
    pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(pooled)
    for embeddings in seen["embeddings"]:
        assert torch.allclose(torch.tensor(embeddings), expected, atol=1e-6)
    assert (tmp_path / "again" / CODE.name).read_bytes() == CODE.read_bytes()


def test_checkpoints_without_code_still_load(_universal_models, tmp_path):
    """Those of Elastic before it wrote any."""
    from elastic.checkpoint import load
    from tests.test_checkpoint import save_extracted

    for name in ("bert", "siglip", "modernbert", "dinov2"):
        universal = _universal_models[name]
        folder, older = tmp_path / name, tmp_path / f"{name}-older"
        save_extracted(universal, SUBNETS["first"], folder)
        shutil.copytree(folder, older)
        (older / CODE.name).unlink()
        config = json.loads((older / "config.json").read_text())
        for key in ("elastic", "auto_map"):
            del config[key]
        (older / "config.json").write_text(json.dumps(config))
        inputs = sample_inputs(universal.config, batch=2)
        with torch.no_grad():
            assert torch.equal(load(folder)(**inputs)[0], load(older)(**inputs)[0])
