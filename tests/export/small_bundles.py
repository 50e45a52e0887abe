"""Bundles for TensorRT made by hand: graphs of a few nodes, so that tests of the runtime need no model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import elastic.export.runtime
from elastic.export.manifest import write_manifest
from elastic.export.runtime.manifest import Manifest, Parity, Profile, TensorSpec
from elastic.export.runtime.samples import Sample, write_samples

TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


def fixed(**sizes: int) -> Profile:
    return Profile(sizes, sizes, sizes)


def make_model(nodes, inputs, outputs, weights, *, opset=20, functions=()) -> onnx.ModelProto:
    ends = [
        [helper.make_tensor_value_info(spec.name, TYPES[spec.dtype], spec.shape) for spec in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "small", *ends, [numpy_helper.from_array(a, n) for n, a in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], functions=functions)
    model.ir_version = 10
    return model


TEXT_INPUTS = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
TEXT_OUTPUTS = (
    TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 4)),
    TensorSpec("sentence_embedding", "float32", ("batch", 4)),
)
TEXT_PROFILES = (fixed(batch=1, sequence=8), fixed(batch=1, sequence=16), fixed(batch=4, sequence=8))


def text_model() -> onnx.ModelProto:
    """Embeddings of tokens, and their mean over the mask."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"], name="embed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="to_float", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"], name="column"),
        helper.make_node("Mul", ["last_hidden_state", "column"], ["kept"], name="keep"),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], name="sum", keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], name="count", keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["sentence_embedding"], name="mean"),
    ]
    weights = {
        "table": rng.standard_normal((50, 4), dtype=np.float32),
        "two": np.array([2]),
        "one": np.array([1]),
    }
    return make_model(nodes, TEXT_INPUTS, TEXT_OUTPUTS, weights)


DECODER_INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "total")),
    TensorSpec("past_key_values.0.key", "float32", ("batch", 1, "past", 3)),
)
DECODER_OUTPUTS = (
    TensorSpec("logits", "float32", ("batch", "sequence", 20)),
    TensorSpec("present.0.key", "float32", ("batch", 1, "total", 3)),
)
DECODER_PROFILES = tuple(
    Profile(*({"batch": 1, "sequence": s, "past": p, "total": s + p} for s, p in sizes))
    for sizes in (((1, 0), (4, 0), (16, 0)), ((1, 1), (1, 4), (1, 31)))
)


def decoder_model() -> onnx.ModelProto:
    """The next token depends on the sum of all keys under the mask."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["new"], name="embed"),
        helper.make_node("Unsqueeze", ["new", "one"], ["new_key"], name="head"),
        helper.make_node("Concat", ["past_key_values.0.key", "new_key"], ["present.0.key"], name="cache", axis=2),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="to_float", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axes"], ["column"], name="column"),
        helper.make_node("Mul", ["present.0.key", "column"], ["kept"], name="keep"),
        helper.make_node("ReduceSum", ["kept", "middle"], ["all"], name="sum", keepdims=0),
        helper.make_node("Unsqueeze", ["all", "one"], ["context"], name="context"),
        helper.make_node("Add", ["new", "context"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "head_weight"], ["logits"], name="lm_head"),
    ]
    weights = {
        "table": rng.standard_normal((20, 3), dtype=np.float32),
        "head_weight": rng.standard_normal((3, 20), dtype=np.float32),
        "one": np.array([1]),
        "axes": np.array([1, 3]),
        "middle": np.array([1, 2]),
    }
    return make_model(nodes, DECODER_INPUTS, DECODER_OUTPUTS, weights)


def draw(specs, sizes, seed=0) -> dict[str, np.ndarray]:
    """Return inputs; masks leave the last position of every row but the first out."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in specs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        if spec.name == "attention_mask":
            arrays[spec.name] = np.ones(shape, dtype=np.int64)
            arrays[spec.name][1:, -1] = 0
        elif spec.dtype == "int64":
            arrays[spec.name] = rng.integers(0, 20, shape)
        else:
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32)
    return arrays


def write_bundle(folder: Path, kind: str = "text", *, preprocess=None) -> Path:
    """Write a bundle of kind ``tensorrt``: a text encoder, or a decoder with a cache."""
    model, inputs, outputs, profiles = {
        "text": (text_model(), TEXT_INPUTS, TEXT_OUTPUTS, TEXT_PROFILES),
        "decoder": (decoder_model(), DECODER_INPUTS, DECODER_OUTPUTS, DECODER_PROFILES),
    }[kind]
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    samples = []
    for profile in profiles:
        arrays = draw(inputs, profile.opt)
        found = session.run(None, arrays)
        samples.append(Sample(arrays, dict(zip([spec.name for spec in outputs], found, strict=True))))
    write_samples(folder / "samples.npz", samples)
    names = profiles[0].min
    shutil.copytree(Path(elastic.export.runtime.__file__).parent, folder / "runtime", ignore=lambda *_: ["__pycache__"])
    manifest = Manifest(
        kind="tensorrt",
        graph="model.onnx",
        model_type="small",
        architecture="Small",
        opset=20,
        ir_version=10,
        inputs=inputs,
        outputs=outputs,
        max_sizes={name: max(profile.max[name] for profile in profiles) for name in names},
        parity=Parity("fp32", 0.0, 1e-4, 1e-5, tuple(profile.opt for profile in profiles), "samples.npz"),
        tools={},
        preprocess=preprocess,
        profiles=profiles,
    )
    write_manifest(folder, manifest)
    return folder
