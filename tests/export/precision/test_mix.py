"""Which layers stay in float: measured alone, then together, on data that calibrated nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from elastic.errors import CheckError
from elastic.export.precision.judge import cosine_judge
from elastic.export.precision.mix import choose_mix, judged, loss, measure_sensitivity
from elastic.export.precision.options import Drop
from elastic.selection import Quality


@pytest.fixture
def spoiled(graph_of):
    """A ViT one of whose layers has a weight so large that a scale for its input or output ruins it."""
    graph = graph_of("vit")
    model = onnx.load(graph.path)
    weight = next(x for x in model.graph.initializer if x.name == "vit.layers.1.mlp.fc1.weight.T")
    bias = next(x for x in model.graph.initializer if x.name == "vit.layers.1.mlp.fc1.bias")
    array = numpy_helper.to_array(bias).copy()
    array[0] = 3000.0  # One GELU output is enormous and constant; in int8 it leaves nothing for the others.
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    down = next(x for x in model.graph.initializer if x.name == "vit.layers.1.mlp.fc2.weight.T")
    array = numpy_helper.to_array(down).copy()
    array[0] = 0.0
    down.CopyFrom(numpy_helper.from_array(array, down.name))
    assert weight.dims[0] == 32
    path = graph.folder / "spoiled.onnx"
    onnx.save(model, path)
    return type(graph)(path, graph.manifest, graph.data, graph.folder)


def judge_of(graph, feeds):
    return cosine_judge(graph.path, feeds, graph.manifest.inputs, graph.manifest.outputs, "made up")


def test_the_layer_that_hurts_is_found_and_left_out(spoiled):
    lowering = spoiled.lowering("int8-static")
    seen = []
    sensitivity = measure_sensitivity(
        lowering, judge_of(spoiled, spoiled.data.feeds), lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (19, 19)
    worst = max(sensitivity, key=lambda name: sensitivity[name])
    assert worst == "vit.layers.1.mlp.fc2"
    final = judge_of(spoiled, spoiled.data.held_out)
    fp32 = final(spoiled.path)
    assert fp32.value == pytest.approx(1.0)
    everything = loss(fp32, judged(lowering, lowering.candidates, final, finished=True))
    allowed = Drop(everything / 4, relative=False)
    chosen, quality = choose_mix(lowering, sensitivity, final, fp32, allowed)
    assert worst not in {linear.name for linear in chosen}
    assert len(chosen) >= 1
    assert loss(fp32, quality) <= allowed.amount
    assert quality == judged(lowering, chosen, final, finished=True)


def test_all_layers_stay_where_all_are_good_enough(graph_of):
    graph = graph_of("bert")
    lowering = graph.lowering("int8")
    final = judge_of(graph, graph.data.held_out)
    sensitivity = dict.fromkeys((linear.name for linear in lowering.linears), 0.0)
    chosen, _ = choose_mix(lowering, sensitivity, final, final(graph.path), Drop.read("50%"))
    assert chosen == lowering.linears


def test_a_drop_that_no_mix_keeps_is_refused_with_the_nearest(graph_of):
    graph = graph_of("bert")
    lowering = graph.lowering("int4")
    sensitivity = dict.fromkeys((linear.name for linear in lowering.linears), 0.0)
    final = judge_of(graph, graph.data.held_out)
    with pytest.raises(CheckError, match=r"no mix of int4 and float32 loses at most 0 of cosine 1 .* seen is \d"):
        choose_mix(lowering, sensitivity, final, final(graph.path), Drop(0.0, relative=True))


def test_multiply_adds_count_every_row(graph_of):
    lowering = graph_of("bert").lowering("int8")
    macs = {linear.name: lowering.macs(linear) for linear in lowering.linears}
    assert macs["bert.encoder.layer.0.output.dense"] == 12 * 64 * 32
    assert macs["classifier"] == 32 * 3  # One vector for each text.


def test_lower_losses_are_better_for_some_metrics():
    before, after = (Quality("loss", value, False, "validation", 10) for value in (2.0, 2.5))
    assert loss(before, after) == 0.5
    assert np.isclose(Drop.read("10%").allowed(before.value), 0.2)
