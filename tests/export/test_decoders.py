from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from elastic.errors import CheckpointError
from elastic.export import bench_bundle, export_onnx, run_bundle, verify_bundle
from elastic.export.runtime.generate import empty_cache, generate, pad_left
from elastic.export.runtime.session import Bundle
from elastic.extraction import extract
from elastic.nested import make_elastic
from elastic.space import Subnet
from tests.tiny import DECODERS, MODELS, SPACE, sweep, tiny_llama

NEW = 9
PROMPTS = [[5, 17, 3], [9, 2, 44, 31, 8, 20, 7], [11]]


def expected_tokens(model, prompt, count=NEW):
    """Run the whole text again for each token, without any cache."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def assert_generates(bundle_dir, model):
    bundle = Bundle.open(bundle_dir, threads=1)
    ids, mask = pad_left(PROMPTS)
    together = generate(bundle, ids, mask, max_new_tokens=NEW)
    assert together.tolist() == [expected_tokens(model, prompt) for prompt in PROMPTS]
    return together


@pytest.mark.parametrize("kind", sweep(("gemma3", "gpt2", "llama", "qwen2"), DECODERS))
def test_prompt_and_tokens_are_those_of_the_model(exported, kind):
    model, report = exported(kind)
    together = assert_generates(report.bundle_dir, model)
    ids, mask = (torch.from_numpy(array) for array in pad_left(PROMPTS))
    stock = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert stock[:, ids.shape[1] :].tolist() == together.tolist()
    proto = onnx.load(report.bundle_dir / "model.onnx")
    stored = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    assert stored < 1.1 * sum(p.numel() * 4 for p in model.parameters()) + 10_000


def test_tokens_in_steps_of_any_length_agree_with_the_whole_text(exported):
    model, report = exported("qwen2")
    bundle = Bundle.open(report.bundle_dir, threads=1)
    ids = np.random.default_rng(0).integers(1, 60, (2, 20))
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    cache, logits = empty_cache(bundle.manifest, 2), []
    for start, end in ((0, 6), (6, 7), (7, 15), (15, 20)):
        outputs = bundle.run({"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], **cache})
        logits.append(outputs["logits"])
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
    with torch.no_grad():
        first = model(torch.from_numpy(ids[:1])).logits[0].numpy()
        second = model(torch.from_numpy(ids[1:, 4:])).logits[0].numpy()
    joined = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(joined[0], first, atol=1e-5)
    np.testing.assert_allclose(joined[1, 4:], second, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "cached"),
    [((2, 4, 2), {0: 1, 1: 2, 2: 1}), ((0, 4, 2), {1: 2, 2: 1}), ((4, 0, 0), {0: 2})],
)
def test_every_layer_caches_its_own_heads(tmp_path, heads, cached):
    small = extract(make_elastic(tiny_llama(), SPACE), Subnet(ffn=(16, 64, 0), heads=heads))
    report = export_onnx(small, tmp_path / "out")
    keys = {spec.name: spec.shape[1] for spec in report.manifest.inputs if spec.name.endswith("key")}
    assert keys == {f"past_key_values.{index}.key": count for index, count in cached.items()}
    assert_generates(tmp_path / "out", small)


def test_the_end_of_a_text_ends_it(exported):
    model, report = exported("llama")
    tokens = expected_tokens(model, PROMPTS[0])
    bundle = Bundle.open(report.bundle_dir, threads=1)
    end = tokens[3]
    found = generate(bundle, np.array([PROMPTS[0]]), max_new_tokens=NEW, eos_ids=[end])[0].tolist()
    assert found == tokens[: tokens.index(end) + 1]


def test_a_file_of_prompts_is_continued(exported, tmp_path):
    model, report = exported("llama")
    np.savez(tmp_path / "ids.npz", input_ids=np.array([PROMPTS[1]]))
    done = run_bundle(report.bundle_dir, tmp_path / "ids.npz", tmp_path / "out.npz", max_new_tokens=NEW)
    assert done.outputs == {"generated_ids": [1, NEW]}
    assert np.load(tmp_path / "out.npz")["generated_ids"][0].tolist() == expected_tokens(model, PROMPTS[1])


def test_the_graph_is_measured_and_verified_with_a_cache(exported):
    report = exported("llama")[1]
    sizes = bench_bundle(report.bundle_dir, sequence=1, past=12, rounds=2).sizes
    assert sizes == {"batch": 1, "sequence": 1, "past": 12, "total": 13}
    assert bench_bundle(report.bundle_dir, rounds=1).sizes["total"] == 64
    assert verify_bundle(report.bundle_dir).max_abs_diff < 1e-5
    manifest = json.loads((report.bundle_dir / "manifest.json").read_text())
    assert manifest["inputs"][2] == {
        "name": "past_key_values.0.key", "dtype": "float32", "shape": ["batch", 2, "past", 8]
    }  # fmt: skip
    assert manifest["outputs"][2] == {
        "name": "present.0.value", "dtype": "float32", "shape": ["batch", 2, "total", 8]
    }  # fmt: skip


def test_what_cannot_be_generated_is_refused(exported, tmp_path):
    bundle = Bundle.open(exported("llama")[1].bundle_dir, threads=1)
    ids = np.array([PROMPTS[0]])
    from elastic.export.runtime.errors import BundleError

    for arguments, settings, message in [
        ((ids,), {"max_new_tokens": 63}, "total must be between 1 and 64 for this bundle, not 65"),
        ((ids,), {"max_new_tokens": 0}, "must be 1 or more"),
        ((ids, np.array([[1, 1, 0]])), {"max_new_tokens": 2}, "pad them at the beginning"),
        ((ids.astype(np.int32),), {"max_new_tokens": 2}, "must be int64"),
    ]:
        with pytest.raises(BundleError, match=message):
            generate(bundle, *arguments, **settings)
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    with pytest.raises(CheckpointError, match="is no decoder with a key-value cache"):
        run_bundle(exported("bert")[1].bundle_dir, tmp_path / "ids.npz", tmp_path / "out.npz", max_new_tokens=3)
    with pytest.raises(CheckpointError, match="has no key-value cache"):
        bench_bundle(exported("bert")[1].bundle_dir, past=3)


def test_every_decoder_is_tested():
    assert set(DECODERS) <= set(MODELS)
