"""The forms that graphs take: which operators, which types, and the same function."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, numpy_helper

from elastic.errors import CheckpointError
from elastic.export.precision.calibration import complete
from elastic.export.precision.linears import prepare_linears, select
from elastic.export.precision.static import LEVELS, quantize_weight, to_static, to_unsigned
from elastic.export.precision.weights import quantize_embeddings

NOT_FOR_TENSORRT = {"MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulNBits"}
FAMILIES = ("bert", "vit", "llama", "gpt2")


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", FAMILIES)
def test_linears_are_products_named_after_layers_and_compute_the_same(graph_of, name):
    graph = graph_of(name)
    model = onnx.load(graph.path)
    linears = prepare_linears(model)
    np.testing.assert_allclose(graph.run(model), graph.run(), atol=1e-5)
    layers = {"bert": 20, "vit": 19, "llama": 22, "gpt2": 13}
    assert len(linears) == layers[name]
    assert not any(linear.name.startswith("val_") for linear in linears), linears
    assert len({linear.name for linear in linears}) == len(linears)
    assert ops(model)["Gemm"] == 0


def test_layers_are_excluded_by_their_names(graph_of):
    linears = prepare_linears(onnx.load(graph_of("bert").path))
    kept = select(linears, ["*.layer.0.*", "classifier"])
    assert len(kept) == len(linears) - 6 - 1
    with pytest.raises(CheckpointError, match="no linear layer of the graph is called 'clasifier'; did you mean 'cla"):
        select(linears, ["clasifier"])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_static_graph_is_signed_symmetric_and_of_standard_operators(graph_of, name):
    graph = graph_of(name)
    lowering = graph.lowering("int8-static", target="tensorrt")
    model = lowering.make(lowering.candidates)
    assert not NOT_FOR_TENSORRT & ops(model).keys()
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert model.ir_version == 10
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = weights[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
    # Inputs that several layers share are quantized once; every layer has a weight of its own.
    inputs = {linear.input for linear in lowering.linears}
    assert ops(model)["QuantizeLinear"] == len(inputs)
    assert ops(model)["DequantizeLinear"] == len(inputs) + len(lowering.linears)
    for linear in lowering.linears:
        assert weights[f"{linear.weight}.quantized"].dtype == np.int8
        assert weights[f"{linear.weight}.scale"].shape == (linear.shape[1],)
        assert linear.weight not in weights
    assert graph.cosine(model) > 0.99


def test_the_unsigned_twin_computes_the_same_numbers(graph_of):
    graph = graph_of("bert")
    lowering = graph.lowering("int8-static", target="tensorrt")
    signed = lowering.make(lowering.candidates)
    unsigned = onnx.ModelProto()
    unsigned.CopyFrom(signed)
    to_unsigned(unsigned)
    evaluate = onnx.reference.ReferenceEvaluator
    feed = {
        "input_ids": graph.data.held_out[0]["input_ids"],
        "attention_mask": np.ones_like(graph.data.held_out[0]["input_ids"]),
    }
    np.testing.assert_array_equal(evaluate(signed).run(None, feed)[0], evaluate(unsigned).run(None, feed)[0])
    assert graph.cosine(unsigned) > 0.99
    zeros = {tensor.name: tensor.data_type for tensor in unsigned.graph.initializer if "zero_point" in tensor.name}
    assert zeros["zero_point_128"] == TensorProto.UINT8 and "zero_point" not in zeros


def test_onnx_runtime_multiplies_integers_in_the_unsigned_twin(graph_of):
    """The signed form would stay in float32 on x86, and so would a Gemm."""
    graph = graph_of("bert")
    lowering = graph.lowering("int8-static")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(graph.folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        lowering.make(lowering.candidates).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimized = ops(onnx.load(options.optimized_model_filepath))
    assert optimized["MatMulIntegerToFloat"] == 18  # All but the pooler and the classifier.


def test_excluded_layers_keep_their_weights(graph_of):
    graph = graph_of("vit")
    lowering = graph.lowering("int8-static", exclude=("*.fc2",))
    model = lowering.make(lowering.candidates)
    floats = {x.name for x in model.graph.initializer if x.data_type == TensorProto.FLOAT}
    assert {f"vit.layers.{i}.mlp.fc2.weight.T" for i in range(3)} <= floats
    assert "vit.layers.0.mlp.fc1.weight.T" not in floats


def test_the_rest_of_a_static_graph_may_be_half(graph_of):
    graph = graph_of("bert")
    lowering = graph.lowering("int8-static", target="tensorrt", rest="fp16")
    model = lowering.make(lowering.candidates)
    scales = {x.data_type for x in model.graph.initializer if x.name.endswith(".scale")}
    assert scales == {TensorProto.FLOAT16}
    assert graph.cosine(model) > 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_half_is_half_as_large_and_keeps_norms(graph_of, name):
    graph = graph_of(name)
    model = graph.lowering("fp16").make(())
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert TensorProto.FLOAT16 not in kinds.values()
    weights = {x.name: x.data_type for x in model.graph.initializer if len(x.dims) == 2}
    halves = [kind for kind in weights.values() if kind == TensorProto.FLOAT16]
    assert len(halves) >= 0.9 * len([kind for kind in weights.values() if kind != TensorProto.INT64])
    assert graph.cosine(model) > 0.9999
    entire = graph.lowering("fp16", fp16_norms=True).make(())
    assert ops(entire)["Cast"] < ops(model)["Cast"]
    assert graph.cosine(entire) > 0.999


def test_norms_of_large_values_do_not_overflow_in_half(graph_of):
    """Squares of values above 255 are infinite in float16; the norm of the values is not."""
    graph = graph_of("llama")
    model = onnx.load(graph.path)
    table = next(x for x in model.graph.initializer if x.name.endswith("embed_tokens.weight"))
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(3e4), table.name))
    path = graph.folder / "large.onnx"
    onnx.save(model, path)
    large = type(graph)(path, graph.manifest, graph.data, graph.folder)
    # ONNX Runtime's CPU kernels compute float16 in float32; the reference implementation does not.
    feed = complete(graph.data.held_out[0], graph.manifest.inputs)
    expected = large.run()
    for norms, same in ((False, True), (True, False)):
        half = large.lowering("fp16", fp16_norms=norms).make(())
        with np.errstate(all="ignore"):
            logits = onnx.reference.ReferenceEvaluator(half).run(["logits"], feed)[0]
        assert np.allclose(logits, expected, atol=0.02 * np.abs(expected).max()) == same


def test_half_inputs_and_outputs(graph_of):
    graph = graph_of("llama")
    model = graph.lowering("fp16", fp16_io=True).make(())
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert kinds["logits"] == kinds["past_key_values.0.key"] == TensorProto.FLOAT16
    assert kinds["input_ids"] == TensorProto.INT64
    assert graph.cosine(model) > 0.9999


def test_positions_are_exact_in_half(graph_of):
    """Above 2048, float16 has no odd numbers: angles of rotary positions would be those of other positions."""
    graph = graph_of("llama")
    model = graph.lowering("fp16", fp16_norms=True).make(())
    kinds = {x.name: x.data_type for x in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    pending, seen = [node for node in model.graph.node if node.op_type in ("Cos", "Sin")], []
    assert pending
    while pending:
        node = pending.pop()
        seen.append(node)
        assert all(kinds.get(name) != TensorProto.FLOAT16 for name in node.input), node
        targets = [attribute.i for attribute in node.attribute if node.op_type == "Cast"]
        assert TensorProto.FLOAT16 not in targets
        pending.extend(producers[name] for name in node.input if name in producers)
    assert len(seen) > 4


@pytest.mark.parametrize("block_size", [32, 16])
def test_int4_weights_are_an_eighth(graph_of, block_size):
    graph = graph_of("llama")
    lowering = graph.lowering("int4", block_size=block_size)
    model = lowering.make(lowering.candidates)
    assert ops(model)["MatMulNBits"] == len(lowering.linears)
    assert ("com.microsoft", 1) in [(opset.domain, opset.version) for opset in model.opset_import]
    packed = [x for x in model.graph.initializer if x.data_type == TensorProto.UINT8]
    assert sum(len(x.raw_data) for x in packed) == sum(
        -(-x.shape[0] // block_size) * block_size // 2 * x.shape[1] for x in lowering.linears
    )
    assert graph.cosine(model) > 0.98


def test_embedding_tables_are_stored_as_rows_of_int8(graph_of):
    graph = graph_of("gpt2")
    model = onnx.load(graph.path)
    quantize_embeddings(model)
    kinds = {x.name: x.data_type for x in model.graph.initializer}
    assert kinds["wpe.weight.rows"] == TensorProto.INT8
    assert "wpe.weight" not in kinds
    assert graph.cosine(model) > 0.999


def test_nothing_chosen_leaves_the_graph_in_float(graph_of):
    lowering = graph_of("vit").lowering("int8-static", target="tensorrt")
    model = onnx.ModelProto()
    model.CopyFrom(lowering.model)
    to_static(model, (), {})
    to_unsigned(model)
    assert model == lowering.model


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e4, 1e4, width=32)
    ),
    st.sampled_from([0, 1]),
)
def test_a_quantized_weight_is_off_by_half_a_step_at_most(weight, axis):
    integers, scales = quantize_weight(weight, axis)
    assert integers.min() >= -LEVELS
    assert (np.abs(integers * scales.astype(np.float64) - weight) <= 0.5001 * scales).all()
