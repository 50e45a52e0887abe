"""Latency tables are read strictly, and what is predicted from them is what an additive device needs."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.cost import Budget, Cost, LatencyModel, LatencyTable
from elastic.cost.latency import Additive
from elastic.errors import BudgetError
from elastic.space import ModelDims, SearchSpace, Subnet
from tests.conftest import subnets
from tests.latency import one_axis_each, read_table, true_ms, write_table

SHAPES = {"pixel_values": (1, 1, 8, 8)}
DIMS = ModelDims(num_layers=3, ffn=64, heads=4, kv_heads=4, hidden=32)
SPACE = SearchSpace(ffn=[0.25, 0.5, 1.0], heads=[0.5, 1.0], layers=[1, 2, 3], attention=[2, 3]).resolve(DIMS)
COST = Cost(1000, 100, 400, 50, SHAPES)


@pytest.fixture
def table(tmp_path):
    return read_table(tmp_path / "t.json", one_axis_each(SPACE), SHAPES)


def test_an_additive_device_is_predicted_exactly(table):
    model = LatencyModel.fit(table, SHAPES)
    rng = random.Random(0)
    for subnet in (SPACE.sample(rng) for _ in range(50)):
        cost = model.add_to(COST, subnet)
        assert cost.latency_ms == pytest.approx(true_ms(subnet), rel=1e-4)
        assert cost.energy_mj == pytest.approx(5 * true_ms(subnet), rel=1e-4)
        assert cost.to_dict()["device"] == "Toaster 3000 (1 thread, fp32)"
    assert model.errors["latency"] < 1e-4
    assert "mean error on those left out of the fit: latency 0.0%" in model.describe()
    model.check_covers(SPACE)


@given(st.lists(subnets(hidden=2).map(lambda s: Subnet(s.ffn, s.heads)), min_size=2, max_size=9, unique=True),
       st.randoms(use_true_random=False))  # fmt: skip
def test_wider_is_never_faster_whatever_was_measured(measured, rng):
    fit = Additive.fit({subnet: rng.uniform(0.5, 20) for subnet in measured})
    widest_ffn, widest_heads = fit.ffn_knots[-1], fit.heads_knots[-1]
    for layer in range(3):
        found = []
        for width in range(1, widest_ffn + 1, 3):
            ffn = tuple(width if index == layer else widest_ffn for index in range(3))
            found.append(fit.predict(Subnet(ffn, (widest_heads if widest_heads in (2, 4) else 0,) * 3)))
        told = [value for value in found if value is not None]
        assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(told))
        assert all(value >= 0 for value in told)


def test_a_bend_is_followed_where_the_measurements_show_one():
    """Widths below a tile of the hardware cost as much as the tile."""
    measured = {
        Subnet((width,) * 3, (heads,) * 3): 1 + 3 * (0.2 * heads + max(width, 48) / 48)
        for width in (16, 32, 48, 56, 64)
        for heads in (2, 4)
    }
    fit = Additive.fit(measured)
    assert fit.ffn_knots == (16, 32, 48, 56, 64)
    assert fit.predict(Subnet((16, 56, 24), (4, 2, 2))) == pytest.approx(1 + 1.6 + 2 + 56 / 48, rel=1e-3)


def test_what_the_measured_subnets_do_not_tell_is_refused(tmp_path):
    of_full_depth = [SPACE.uniform(), SPACE.uniform(ffn=16), SPACE.uniform(heads=2)]
    model = LatencyModel.fit(read_table(tmp_path / "t.json", of_full_depth, SHAPES), SHAPES)
    assert model.add_to(COST, SPACE.uniform(ffn=32)).latency_ms == pytest.approx(true_ms(SPACE.uniform(ffn=32)))
    with pytest.raises(BudgetError, match="do not tell what 2/3 layers, ffn 64, heads 4 needs; profile a bundle"):
        model.check_covers(SPACE)
    with pytest.raises(BudgetError, match="do not tell"):
        model.add_to(COST, SPACE.uniform(layers=1))
    narrow = LatencyModel.fit(read_table(tmp_path / "n.json", one_axis_each(SPACE)[1:3], SHAPES), SHAPES)
    with pytest.raises(BudgetError, match="do not tell what 3/3 layers, ffn 64"):
        narrow.check_covers(SPACE)
    assert model.errors["latency"] is None
    assert "latency unknown" in model.describe()


def test_hidden_sizes_are_told_apart(tmp_path):
    model = LatencyModel.fit(read_table(tmp_path / "t.json", one_axis_each(SPACE), SHAPES), SHAPES)
    with pytest.raises(BudgetError, match="hidden 16 needs"):
        model.add_to(COST, Subnet((64,) * 3, (4,) * 3, hidden=16))


def test_other_input_sizes_are_refused_with_the_nearest(tmp_path):
    path = write_table(tmp_path / "t.json", one_axis_each(SPACE), {"input_ids": (1, 64)})
    data = json.loads(path.read_text())
    for length in (16, 64, 256):
        data["measured"] += [
            {**row, "inputs": {"input_ids": [1, length]}, "sizes": {"batch": 1, "sequence": length}}
            for row in data["measured"][:3]
        ]
    path.write_text(json.dumps(data))
    table = LatencyTable.read(path)
    with pytest.raises(BudgetError, match=r"not measured at input_ids 1x200, .* the nearest are batch 1, sequence 256"):
        LatencyModel.fit(table, {"input_ids": (1, 200)})
    with pytest.raises(BudgetError, match="after 7 cached tokens"):
        LatencyModel.fit(table, {"input_ids": (1, 64)}, past=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, and this version reads up to 1"),
        ({"measured": []}, "measured: "),
        ({"measured": [{"name": "a"}]}, r"measured\.0\.subnet: Field required"),
        ({"threads": "many"}, "threads: "),
        ({"device": 3}, "device: "),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, changes, message):
    path = write_table(tmp_path / "t.json", one_axis_each(SPACE), SHAPES, **changes)
    with pytest.raises(BudgetError, match=message):
        LatencyTable.read(path)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["format_version", "measured", "device", "subnet", "ffn", "x"]), inner, max_size=4)),
       st.sampled_from(["measured", "device", "threads", "format_version", "precision", None]))  # fmt: skip
def test_only_budget_errors_leave_the_reader(tmp_path_factory, junk, key):
    path = tmp_path_factory.mktemp("t") / "t.json"
    write_table(path, one_axis_each(SPACE), SHAPES, **({} if key is None else {key: junk}))
    if key is None:
        path.write_text(json.dumps(junk))
    try:
        LatencyTable.read(path)
    except BudgetError as error:
        assert str(error).count("\n") == 0


def test_tables_that_are_not_there_or_say_no_subnet_are_refused(tmp_path):
    with pytest.raises(BudgetError, match="there is no latency table"):
        LatencyTable.read(tmp_path / "none.json")
    path = write_table(tmp_path / "t.json", one_axis_each(SPACE), SHAPES)
    data = json.loads(path.read_text())
    for row in data["measured"]:
        row["subnet"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(BudgetError, match="says which subnet it is"):
        LatencyModel.fit(LatencyTable.read(path), SHAPES)


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        (Budget(latency="8ms"), {"latency": 8.0}),
        (Budget(latency="0.5s", flops=2000), {"flops": 2000, "latency": 500.0}),
        (Budget(latency="250us"), {"latency": 0.25}),
        (Budget(latency="50%", energy="1J"), {"latency": 5.0, "energy": 1000.0}),
    ],
)
def test_budgets_of_latency_have_units(budget, limits):
    cost = Cost(1000, 100, 400, 50, SHAPES, latency_ms=10.0, energy_mj=30.0)
    assert budget.limits(cost).values == pytest.approx(limits)


def test_budgets_of_latency_are_refused_without_unit_or_table():
    with pytest.raises(BudgetError, match="'8' is not a budget of latency; write a positive number with its unit: 8ms"):
        Budget(latency="8").limits(Cost(1, 1, 1, 1, SHAPES, latency_ms=1.0))
    with pytest.raises(
        BudgetError, match="a budget of latency needs a latency table, which `elastic profile` measures"
    ):
        Budget(latency="8ms").limits(COST)
    with pytest.raises(BudgetError, match="a budget of energy needs a latency table with energies"):
        Budget(energy="8mJ").limits(Cost(1, 1, 1, 1, SHAPES, latency_ms=1.0))
    limits = Budget(latency="1ms").limits(Cost(1, 1, 1, 1, SHAPES, latency_ms=9.0))
    with pytest.raises(BudgetError, match="no subnet has latency of at most 1 ms; the smallest has 2 ms"):
        limits.check_reachable(Cost(1, 1, 1, 1, SHAPES, latency_ms=2.0))
