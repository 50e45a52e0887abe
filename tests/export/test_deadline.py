from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.export.runtime.deadline import Latencies, read_milliseconds
from elastic.export.runtime.errors import BundleError
from elastic.export.runtime.manifest import Member, Parity

SIZES = {"batch": 1, "sequence": 16}
PARITY = Parity("fp32", 0.0, 1e-4, None, (), "samples.npz")


def member(name, flops=None, quality=None):
    cost = None if flops is None else {"flops": flops}
    return Member(name, f"{name}.onnx", (), (), PARITY, {}, cost, quality)


def accuracy(value, metric="accuracy", higher=True):
    return {"metric": metric, "value": value, "higher_is_better": higher, "split": "validation"}


LARGE, HALF, SMALL = MEMBERS = [member("L", 100), member("M", 50), member("S", 25)]


def record(latencies, name, *milliseconds, sizes=SIZES):
    for value in (0.0, *milliseconds):  # The first call is left out.
        latencies.record(name, sizes, value)


def test_the_largest_that_meets_the_deadline_runs():
    latencies = Latencies()
    assert latencies.choose(MEMBERS, SIZES, 1e9) is SMALL, "nothing is known, so the cheapest"
    for name, milliseconds in (("L", 10.0), ("M", 6.0), ("S", 4.0)):
        record(latencies, name, milliseconds)
    chosen = [latencies.choose(MEMBERS, SIZES, deadline).name for deadline in (10, 9.9, 6, 5, 3)]
    assert chosen == ["L", "M", "M", "S", "S"]


def test_better_means_measured_quality_where_all_have_it():
    better = [member("L", 100, accuracy(0.8)), member("M", 50, accuracy(0.9))]
    lower = [member("L", 100, accuracy(3.0, "loss", False)), member("M", 50, accuracy(2.0, "loss", False))]
    others = [member("L", 100, accuracy(0.8)), member("M", 50, accuracy(2.0, "loss", False))]
    for members, expected in ((better, "M"), (lower, "M"), (others, "L"), (MEMBERS[:2], "L")):
        latencies = Latencies()
        record(latencies, "L", 1.0)
        assert latencies.choose(members, SIZES, 5).name == expected


def test_what_was_not_measured_is_scaled():
    latencies = Latencies()
    record(latencies, "M", 6.0)
    assert latencies.choose(MEMBERS, SIZES, 12).name == "L"
    assert latencies.choose(MEMBERS, SIZES, 11.9).name == "M"
    assert latencies.choose(MEMBERS, SIZES, 5.9).name == "S"
    assert latencies.choose(MEMBERS, {"batch": 2, "sequence": 16}, 12).name == "M"
    assert latencies.choose(MEMBERS, {"batch": 1, "sequence": 16, "past": 0, "total": 16}, 12).name == "L"
    latencies.record("L", SIZES, 0.0)
    latencies.record("L", SIZES, 30.0)
    assert latencies.choose(MEMBERS, SIZES, 12).name == "M", "what is measured counts"


def test_members_without_costs_do_not_matter_to_each_other():
    latencies = Latencies()
    record(latencies, "a", 5.0)
    assert latencies.choose([member("a"), member("b")], SIZES, 6) in (member("a"), member("b"))


def test_latencies_follow_a_change_and_forgive_an_outlier():
    latencies = Latencies()
    record(latencies, "M", *[5.0] * 20)
    assert latencies.expected("M", SIZES) == pytest.approx(5.0)
    latencies.record("M", SIZES, 50.0)
    assert latencies.expected("M", SIZES) > 10
    for _ in range(60):
        latencies.record("M", SIZES, 8.0)
    assert latencies.expected("M", SIZES) == pytest.approx(8.0, abs=0.1)
    assert latencies.expected("M", {"batch": 2}) is None


@given(
    st.dictionaries(st.sampled_from("LMS"), st.lists(st.floats(0.1, 100), min_size=1, max_size=9)), st.floats(0.01, 500)
)
def test_whoever_is_chosen_is_expected_in_time_or_nobody_is(measured, deadline):
    latencies = Latencies()
    for name, milliseconds in measured.items():
        record(latencies, name, *milliseconds)
    chosen = latencies.choose(MEMBERS, SIZES, deadline)
    known = {name: latencies.expected(name, SIZES) for name in measured}
    if chosen.name in known and known[chosen.name] > deadline:
        assert min(known.values()) == known[chosen.name]
    for one in MEMBERS:
        if one.name in known and known[one.name] <= deadline:
            assert chosen.cost["flops"] >= one.cost["flops"]


@pytest.mark.parametrize(("text", "expected"), [("8ms", 8), ("0.5s", 500), ("8", 8), (" 2.5ms ", 2.5)])
def test_times_are_read(text, expected):
    assert read_milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "nan", "inf", "8m", "8us"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(BundleError, match="is not a time; write one such as 8ms"):
        read_milliseconds(text)
