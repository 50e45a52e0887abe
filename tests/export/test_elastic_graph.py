from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import CheckError, CheckpointError, SpaceError
from elastic.export import NamedSubnet, export_elastic, nested_ffn, verify_bundle
from elastic.export.elastic_graph import Controls
from elastic.export.inputs import describe_inputs, forward_outputs
from elastic.export.runtime.compare import compare
from elastic.export.runtime.generate import generate, pad_left
from elastic.export.runtime.members import Session
from elastic.export.runtime.session import Bundle
from elastic.extraction import extract
from elastic.nested import active, get_elastic, make_elastic
from elastic.space import SearchSpace, Subnet
from tests.conftest import make_tiny_elastic
from tests.tiny import MODELS, tiny_bert, tiny_llama, tiny_vit

CONTROLS = Controls(num_layers=3, widths=(16, 32, 64), heads=4, skips_attention=True, skips_mlp=True)
NAMED = [
    NamedSubnet("S", Subnet((16, 0, 16), (4, 0, 4))),
    NamedSubnet("M", Subnet((32, 32, 32), (4, 4, 0))),
    NamedSubnet("L", Subnet((64, 64, 64), (4, 4, 4))),
]


@pytest.fixture(scope="module")
def elastic_graphs(tmp_path_factory):
    """Return a function that exports a universal model once, and gives it with its report."""
    folder, done = tmp_path_factory.mktemp("elastic"), {}

    def get(name: str):
        if name not in done:
            model = make_tiny_elastic(MODELS[name]())
            done[name] = model, export_elastic(model, NAMED, folder / name)
        return done[name]

    return get


def subnets():
    layer = st.tuples(st.sampled_from((0, 16, 32, 64)), st.sampled_from((0, 4)))
    return st.lists(layer, min_size=3, max_size=3).filter(lambda layers: any(map(any, layers))).map(
        lambda layers: Subnet(tuple(f for f, _ in layers), tuple(h for _, h in layers))
    )  # fmt: skip


def largest_difference(model, bundle, subnet, sizes, seed):
    inputs = describe_inputs(model)
    arrays = inputs.sample(sizes, seed=seed)
    with active(model, subnet):
        expected = forward_outputs(model, inputs, {name: torch.from_numpy(a) for name, a in arrays.items()})
    given = {k: np.array(v, bool if k == "attention_on" else np.int64) for k, v in CONTROLS.values(subnet).items()}
    actual = replace(bundle, controls=given).run(arrays)
    compared = [spec for spec in bundle.manifest.outputs if not spec.name.startswith("present")]
    mask = arrays.get("attention_mask")
    return max(compare(s, expected[s.name].numpy(), actual[s.name], mask, sizes).max_abs_diff for s in compared)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "modernbert"])
def test_any_setting_of_the_controls_is_that_subnet(elastic_graphs, kind):
    model, report = elastic_graphs(kind)
    bundle = Bundle.open(report.bundle_dir, threads=1)

    @given(subnets(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
    @settings(max_examples=15)
    def check(subnet, batch, sequence, seed):
        sizes = {"batch": batch, "sequence": sequence, "past": 2, "total": sequence + 2}
        assert largest_difference(model, bundle, subnet, sizes, seed) < 1e-5

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_family_has_an_elastic_graph(elastic_graphs, kind):
    model, report = elastic_graphs(kind)
    assert report.max_abs_diff < 1e-5 and not report.left_out
    assert verify_bundle(report.bundle_dir).max_abs_diff < 1e-5
    proto = onnx.load(report.bundle_dir / "model.onnx")
    stored = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    assert stored < 1.1 * sum(p.numel() * 4 for p in model.parameters()) + 10_000


def test_members_run_by_name_and_verify(elastic_graphs):
    model, report = elastic_graphs("bert")
    assert [member.name for member in report.manifest.members] == ["L", "M", "S"]
    assert report.manifest.members[2].controls == {"ffn_blocks": [1, 0, 1], "attention_on": [1, 0, 1]}
    verify_bundle(report.bundle_dir)
    session = Session.open(report.bundle_dir, threads=1)
    inputs = describe_inputs(model).sample({"batch": 2, "sequence": 9}, seed=5)
    for named in NAMED:
        with torch.no_grad():
            expected = extract(model, named.subnet)(**{k: torch.from_numpy(a) for k, a in inputs.items()}).logits
        actual = session.run(inputs, subnet=named.name)["logits"]
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)


def test_skipped_parts_lie_in_branches_and_weights_outside_of_them(elastic_graphs):
    report = elastic_graphs("bert")[1]
    graph = onnx.load(report.bundle_dir / "model.onnx").graph
    assert [value.name for value in graph.input][-2:] == ["ffn_blocks", "attention_on"]
    outside = {node.op_type for node in graph.node}
    assert "If" in outside and not {"Softmax", "Gelu"} & outside
    branches = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute]
    assert len(branches) == 2 * 3 * (1 + len(CONTROLS.widths) + 1) and not any(b.initializer for b in branches)
    assert not any(node.op_type == "If" for branch in branches for node in branch.node)  # whose weights stay unpacked


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoders_generate_with_any_subnet(elastic_graphs, kind):
    model, report = elastic_graphs(kind)
    for named in NAMED:
        bundle = Bundle.open(report.bundle_dir, threads=1, subnet=named.name)
        ids, mask = pad_left([[5, 17, 3], [9, 2, 44, 31]])
        expected = extract(model, named.subnet).eval().generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=6, do_sample=False,
            pad_token_id=0, use_cache=False,
        )  # fmt: skip
        assert generate(bundle, ids, mask, max_new_tokens=6).tolist() == expected[:, ids.shape[1] :].tolist()


def test_a_space_of_widths_alone_has_no_branch_that_skips(tmp_path):
    model = make_elastic(tiny_vit(), SearchSpace(ffn=(0.5, 1.0)))
    report = export_elastic(model, [NamedSubnet("half", get_elastic(model).resolved.smallest)], tmp_path / "widths")
    assert [spec.name for spec in report.manifest.controls] == ["ffn_blocks"]
    graph = onnx.load(tmp_path / "widths" / "model.onnx").graph
    assert sum(node.op_type == "If" for node in graph.node) == 3


def test_subnets_that_the_graph_does_not_hold_are_left_out(tmp_path):
    model = make_tiny_elastic(tiny_llama())
    fewer_heads = NamedSubnet("S", Subnet((64,) * 3, (2,) * 3))
    report = export_elastic(model, [NAMED[2], fewer_heads], tmp_path / "some")
    assert [member.name for member in report.manifest.members] == ["L"]
    assert report.left_out == {"S": "an elastic graph has 4 heads in every layer"}
    with pytest.raises(SpaceError, match="no named subnet of this model"):
        export_elastic(model, [fewer_heads], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_models_without_anything_to_choose_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no universal model"):
        export_elastic(tiny_vit(), NAMED, tmp_path / "no")
    with pytest.raises(SpaceError, match="skips nothing"):
        export_elastic(make_elastic(tiny_vit(), SearchSpace(heads=(0.5, 1.0))), NAMED, tmp_path / "no")


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    whole = nested_ffn.weights_of

    def wrong(node):
        weight, bias = whole(node)
        return weight, None if bias is None else np.roll(bias, 1)

    monkeypatch.setattr(nested_ffn, "weights_of", wrong)
    with pytest.raises(CheckError, match="the subnet 'L' does not compute"):
        export_elastic(make_tiny_elastic(tiny_bert()), NAMED, tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []
