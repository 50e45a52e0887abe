from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from elastic.errors import CheckpointError
from elastic.export.runtime.manifest import TensorSpec
from elastic.export.tensorrt import lint_for_tensorrt
from elastic.export.tensorrt.operators import INDIRECT, OPERATORS, max_opset
from tests.export.small_bundles import decoder_model, make_model, text_model

X = (TensorSpec("x", "float32", ("batch", 4)),)
Y = (TensorSpec("y", "float32", ("batch", 4)),)
SCALE = {"scale": np.float32(0.1)}


def one_node(operator, inputs=("x",), weights=None, outputs=("y",), opset=20, **attributes):
    nodes = [helper.make_node(operator, list(inputs), list(outputs), name="here", **attributes)]
    return make_model(nodes, X, Y, weights or {}, opset=opset)


def problems(model, trt="10.3", **options):
    return [str(finding) for finding in lint_for_tensorrt(model, trt, **options)]


def test_our_graphs_pass():
    assert problems(text_model()) == problems(decoder_model()) == []
    assert problems(text_model(), free=frozenset({"batch", "sequence"})) == []
    assert problems(text_model(), "11.4") == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            one_node("DynamicQuantizeLinear"),
            "operator DynamicQuantizeLinear (node 'here') is not read by TensorRT; quantize",
        ),
        (one_node("NotAnOperator"), "operator NotAnOperator (node 'here') is not read by TensorRT"),
        (one_node("BiasGelu", domain="com.microsoft"), "is of the domain 'com.microsoft'"),
        (one_node("Attention"), "is read from TensorRT 10.14 on, and not by 10.3"),
        (one_node("Cast", to=TensorProto.UINT8), "makes UINT8"),
        (one_node("CumSum", ("x", "x")), "has an axis that is not a constant"),
        (one_node("LayerNormalization", ("x", "scale"), SCALE, ("y", "mean")), "has more than one output"),
        (one_node("TopK", ("x", "x"), outputs=("y", "i")), "has a K that is not a constant"),
        (one_node("TopK", ("x", "k"), {"k": np.array([1])}, ("y", "i"), sorted=0), "is not sorted"),
        (one_node("QuantizeLinear", ("x", "scale"), SCALE), "has no zero point, which makes its result UINT8"),
        (one_node("QuantizeLinear", ("x", "scale", "x"), SCALE), "has a zero point that is not a constant"),
        (one_node("QuantizeLinear", ("x", "scale", "z"), SCALE | {"z": np.uint8(128)}), "quantizes to UINT8"),
        (one_node("DequantizeLinear", ("x", "scale", "z"), SCALE | {"z": np.int8(3)}), "has a zero point other than 0"),
        (one_node("Relu", opset=21), "the operator set 21 is not one of 9 to 20, which TensorRT 10.3 reads"),
        (one_node("Relu", opset=8), "the operator set 8 is not one of 9 to 20"),
    ],
)
def test_what_would_be_refused_is_named(model, message):
    found = problems(model)
    assert len(found) == 1
    assert message in found[0]


def beside(**place):
    model = one_node("Add", ("x", "w"), {"w": np.ones((1, 4), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "64", "length": "16", **place}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_weights_beside_the_graph_may_be_a_part_of_a_file():
    assert problems(beside()) == problems(beside(offset="0", checksum="1")) == []
    assert problems(beside(location="../weights.bin")) == [
        "the weight 'w' lies in '../weights.bin', outside of the folder"
    ]
    assert problems(beside(length="64")) == ["the weight 'w' has 16 bytes, and 64 of its file"]
    assert problems(beside(basepath="/")) == ["the weight 'w' lies beside the graph and is described by 'basepath'"]


@pytest.mark.parametrize(
    "model",
    [
        one_node("QuantizeLinear", ("x", "scale", "z"), SCALE | {"z": np.int8(0)}),
        one_node("DequantizeLinear", ("x", "scale"), SCALE),
        one_node("TopK", ("x", "k"), {"k": np.array([1])}, ("y", "i")),
    ],
)
def test_what_follows_the_rules_passes(model):
    assert problems(model) == []


def test_later_versions_read_more():
    assert problems(one_node("Attention"), "10.14") == []
    assert problems(one_node("Relu", opset=24), "10.15") == []
    assert len(problems(one_node("Relu", opset=24), "10.14")) == 1
    assert [max_opset(version) for version in ((10, 3), (10, 14), (10, 16), (11, 4))] == [20, 20, 24, 25]


def test_names_are_for_free_dimensions_alone():
    found = problems(text_model(), free=frozenset({"batch"}))
    assert "dimension 1 of 'input_ids' has the name 'sequence' where a number is needed" in found[0]
    model = one_node("Relu")
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert "dimension 0 of 'x' has neither a size nor a name" in problems(model)[0]


def branch(name, rank=2, operator="Relu"):
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 1][:rank])
    return helper.make_graph([helper.make_node(operator, ["x"], [name], name=f"in_{name}")], name, [], [output])


@pytest.mark.parametrize(
    ("then", "other", "message"),
    [
        (branch("a"), branch("b"), None),
        (branch("a"), branch("a"), "has the output 'a' in both branches"),
        (branch("a"), branch("b", rank=3), "has the branches 'a' of rank 2 and 'b' of rank 3"),
        (branch("a"), branch("b", operator="QLinearMatMul"), "operator QLinearMatMul (node 'in_b') is not read"),
    ],
)
def test_branches(then, other, message):
    weights = {"condition": np.array(True)}
    found = problems(one_node("If", ("condition",), weights, then_branch=then, else_branch=other))
    assert (found == []) if message is None else (len(found) == 1 and message in found[0])


def test_zero_points_in_a_file_beside_the_graph_are_read(tmp_path):
    weights = {"s": np.ones(4, "f4"), "z": np.array([0, 0, 1, 0], "i1")}
    model = one_node("QuantizeLinear", ("x", "s", "z"), weights, axis=1)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert "other than 0" in problems(tmp_path / "m.onnx")[0]
    fine = one_node("QuantizeLinear", ("x", "s", "z"), weights | {"z": np.zeros(4, "i1")}, axis=1)
    onnx.save(fine, tmp_path / "fine.onnx", save_as_external_data=True, location="fine.bin", size_threshold=0)
    assert problems(tmp_path / "fine.onnx") == []


@pytest.mark.parametrize("version", ["10", "9.3", "ten", "10.x", ""])
def test_versions_that_are_none_are_refused(version):
    with pytest.raises(CheckpointError, match="is not a version of TensorRT"):
        lint_for_tensorrt(text_model(), version)


def test_the_table_has_standard_operators_alone():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert set(OPERATORS) <= known
    assert set(INDIRECT) <= known - set(OPERATORS)
