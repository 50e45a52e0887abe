"""Models cut at a narrower hidden size: stock where a configuration can say so, and what is around them follows."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForImageClassification, BertForSequenceClassification, ViTForImageClassification

from elastic.checkpoint import load, save_checkpoint
from elastic.cost import CostModel
from elastic.export import export_onnx
from elastic.extraction import (
    choices_stock_refuses,
    extract,
    is_portable,
    largest_difference,
    sample_inputs,
    verify_extraction,
)
from elastic.families import get_family, input_shapes
from elastic.folder import new_folder
from elastic.nested import active, get_elastic, make_elastic
from elastic.ordering import correct
from elastic.record import CheckpointRecord
from elastic.space import SearchSpace, Subnet
from tests.tiny import MODELS, tiny_bert, tiny_bert_base, tiny_llama, tiny_vit

ALL = (64,) * 3


def narrow(hidden, heads=4, ffn=64):
    return Subnet((ffn,) * 3, (heads,) * 3, hidden)


@pytest.mark.parametrize(
    ("build", "heads", "hidden", "portable"),
    [
        (tiny_vit, 4, 20, True),  # head_dim is in the configuration
        (tiny_vit, 2, 7, True),
        (tiny_bert, 2, 16, True),  # two heads of 8
        (tiny_bert, 4, 16, False),
        (tiny_bert, 2, 24, False),
        (tiny_llama, 4, 20, True),
        (tiny_llama, 4, 22, False),  # Llama's configuration wants heads that divide it
        (MODELS["mistral"], 4, 22, True),
        (MODELS["gpt2"], 2, 16, True),
        (MODELS["gpt2"], 4, 16, False),
        (MODELS["distilbert"], 2, 16, True),
        (MODELS["modernbert"], 2, 16, True),
    ],
)
def test_what_a_stock_configuration_can_say(build, heads, hidden, portable, tmp_path):
    model = make_elastic(build(), SearchSpace())
    subnet, inputs = narrow(hidden, heads), sample_inputs(model.config, batch=3)
    assert is_portable(get_elastic(model).family, model.config, subnet) == portable
    small = extract(model, subnet)
    verify_extraction(model, subnet, small, inputs)
    assert small.config.hidden_size == hidden
    assert (type(small) is type(model)) == portable
    small.save_pretrained(tmp_path)
    if portable:
        verify_extraction(model, subnet, type(model).from_pretrained(tmp_path), inputs)
        assert get_family(small.config).dims(small.config).hidden == hidden
    else:
        with pytest.raises(Exception, match=r"[Pp]er.?layer|ambiguous"):
            type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        *((MODELS[name], "hidden_size") for name in ("bert", "llama", "qwen2", "phi3", "dinov2", "electra")),
        *(
            (MODELS[name], field)
            for name, field in (("gpt2", "n_embd"), ("distilbert", "dim"), ("modernbert", "hidden_size"))
        ),
    ],
)
def test_what_stock_refuses_comes_back_without_a_difference(build, field, tmp_path):
    model = make_elastic(build(), SearchSpace())
    subnet, inputs = Subnet((64, 16, 64), (4,) * 3, 22), sample_inputs(model.config, batch=3)
    record = CheckpointRecord(
        kind="extracted",
        family=model.config.model_type,
        elastic_version="0",
        input_shapes={},
        subnet=subnet.to_dict(),
        universal_dims=get_elastic(model).dims,
    )
    small = extract(model, subnet)
    with new_folder(tmp_path / "small") as folder:
        save_checkpoint(small, record, folder)
    assert small.config.hidden_size == 22
    saved = json.loads((tmp_path / "small" / "config.json").read_text())["per_layer_config"]
    assert {layer[field] for layer in saved.values()} == {22}
    loaded = load(tmp_path / "small")
    assert loaded.config.hidden_size == 22
    with torch.no_grad():
        assert largest_difference(small(**inputs)[0], loaded(**inputs)[0]) == 0
    verify_extraction(model, subnet, loaded, inputs)


def test_a_stock_process_loads_a_narrow_vit(tmp_path):
    model = make_elastic(tiny_vit(), SearchSpace(hidden=[0.5, 1.0]))
    extract(model, get_elastic(model).resolved.smallest).save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is ViTForImageClassification
    assert (loaded.config.hidden_size, loaded.config.head_dim, loaded.config.num_attention_heads) == (16, 8, 4)
    assert loaded.classifier.weight.shape == (5, 16)


def test_the_pooler_of_bert_is_square():
    model = make_elastic(tiny_bert_base(), SearchSpace())
    assert extract(model, narrow(20)).pooler.dense.weight.shape == (20, 20)


def test_the_plan_says_which_hidden_sizes_need_elastic():
    model = make_elastic(tiny_bert(), SearchSpace(hidden=[8, 16, 32], heads=[2, 4]))
    refused = choices_stock_refuses(get_elastic(model).family, model.config, get_elastic(model).resolved)
    assert refused == {"heads": [2], "hidden": [8, 16]}


def test_dimensions_of_embeddings_change_neither_cost_nor_weights(tmp_path):
    model = make_elastic(tiny_bert_base(), SearchSpace(embedding_dim=[8, 32]))
    cost = CostModel.of(model, input_shapes(model.config, tokens=9))
    for hidden in (None, 16):
        whole, truncated = (Subnet(ALL, (2,) * 3, hidden, embedding_dim) for embedding_dim in (None, 8))
        assert cost.cost(whole) == cost.cost(truncated)
        small, inputs = extract(model, truncated), sample_inputs(model.config, batch=2)
        verify_extraction(model, truncated, small, inputs)
        small.save_pretrained(tmp_path / str(hidden))
        if hidden:
            assert type(small) is type(model)


def test_costs_of_many_narrow_subnets_are_traced_once(monkeypatch):
    model = make_elastic(tiny_vit(), SearchSpace(ffn=[0.25, 0.5, 1.0], hidden=[0.5, 0.75, 1.0]))
    cost = CostModel.of(model, input_shapes(model.config))
    traces = []
    count = CostModel._count_flops
    monkeypatch.setattr(CostModel, "_count_flops", lambda self, *choice: traces.append(choice) or count(self, *choice))
    flops = [cost.cost(subnet).flops for subnet in get_elastic(model).resolved.uniform_subnets()]
    assert len(traces) == 2 * 3
    assert len(set(flops)) == len(flops)


def test_correction_follows_the_first_dimensions_of_the_stream():
    model = make_elastic(tiny_bert(), SearchSpace())
    subnet = narrow(24, heads=2)
    batches = [sample_inputs(model.config, batch=8, seed=seed) for seed in range(8)]

    def error(small):
        with torch.no_grad():
            pairs = [(model(**batch)[0], small(**batch)[0]) for batch in batches]
        return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())

    small = extract(model, subnet)
    before = error(small)
    correct(model, subnet, small, batches)
    assert error(small) < 0.95 * before


def test_a_narrow_graph_in_onnx(tmp_path):
    model = make_elastic(tiny_bert(), SearchSpace())
    for subnet in (narrow(16, heads=2), narrow(20)):
        small = extract(model, subnet)
        report = export_onnx(small, tmp_path / str(subnet.hidden))
        assert report.max_abs_diff < 1e-5
        inputs = {"input_ids": np.arange(1, 13).reshape(2, 6), "attention_mask": np.ones((2, 6), dtype=np.int64)}
        session = onnxruntime.InferenceSession(report.bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
        with active(model, subnet), torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})[0].numpy()
        assert np.abs(session.run(None, inputs)[0] - expected).max() < 1e-5
    assert issubclass(type(small), BertForSequenceClassification)
