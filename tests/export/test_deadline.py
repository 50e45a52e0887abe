from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.export.runtime.deadline import RETRY_CALLS, Latencies, read_milliseconds
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


def repeat(latencies, name, milliseconds, times):
    for _ in range(times):
        latencies.record(name, SIZES, milliseconds)


@pytest.fixture
def throttled():
    """A hot device: the large subnet took 30 ms, and half of it takes 12."""
    latencies = Latencies()
    record(latencies, "L", *[30.0] * 10)
    record(latencies, "M", *[12.0] * 10)
    return latencies


def test_a_subnet_that_was_too_slow_is_tried_again_when_the_others_became_faster(throttled):
    repeat(throttled, "M", 12.0, 100)
    assert throttled.choose(MEMBERS[:2], SIZES, 20) is HALF, "as slow as it was when the large one took 30 ms"
    repeat(throttled, "M", 7.0, 4)
    assert throttled.choose(MEMBERS[:2], SIZES, 20) is HALF, "the median of the last calls is as it was"
    repeat(throttled, "M", 7.0, 1)
    assert throttled.choose(MEMBERS[:2], SIZES, 20) is LARGE, "30 ms * 7 / 12 are in time"
    assert throttled.choose(MEMBERS[:2], SIZES, 17) is HALF, "and late here"
    throttled.record("L", SIZES, 17.0)
    assert throttled.expected("L", SIZES) == 17.0, "its record begins anew"
    assert throttled.choose(MEMBERS[:2], SIZES, 20) is LARGE


def test_one_that_fails_again_waits_for_as_many_calls(throttled):
    repeat(throttled, "M", 7.0, RETRY_CALLS)
    chosen = []
    for _ in range(10 * RETRY_CALLS):
        one = throttled.choose(MEMBERS[:2], SIZES, 20)
        throttled.record(one.name, SIZES, {"L": 29.0, "M": 7.0}[one.name])
        chosen.append(one.name)
    assert chosen[0] == "L"
    assert chosen.count("L") == 1, "nothing has changed since"


def test_a_single_slow_call_does_not_shut_a_subnet_out_for_ever():
    latencies = Latencies()
    record(latencies, "L", *[10.0] * 20, 300.0)
    record(latencies, "M", *[5.0] * (RETRY_CALLS - 1))
    assert latencies.choose(MEMBERS[:2], SIZES, 20) is HALF
    latencies.record("M", SIZES, 5.0)
    assert latencies.choose(MEMBERS[:2], SIZES, 20) is LARGE
    assert latencies.choose(MEMBERS[:2], SIZES, 9) is HALF, "it usually takes 10"
    latencies.record("L", SIZES, 10.0)
    assert [latencies.choose(MEMBERS[:2], SIZES, 20) for _ in range(3)] == [LARGE] * 3


def test_other_sizes_say_nothing(throttled):
    for _ in range(2 * RETRY_CALLS):
        throttled.record("M", {"batch": 1, "sequence": 8}, 2.0)
    assert throttled.choose(MEMBERS[:2], SIZES, 20) is HALF


@given(st.floats(1, 100), st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=50, max_size=120))
def test_what_may_be_late_is_tried_once_in_so_many_calls(deadline, device):
    """Whatever the device does: a call by a record that says it is late comes at most every `RETRY_CALLS` calls."""
    latencies, tried = Latencies(), []
    record(latencies, "L", 1000.0)
    for number, (large, half) in enumerate(device):
        late = (latencies.expected("L", SIZES) or 0) > deadline
        one = latencies.choose(MEMBERS[:2], SIZES, deadline)
        other = latencies.expected("M", SIZES)
        if one is LARGE and late and other is not None and other <= deadline:
            tried.append(number)
        latencies.record(one.name, SIZES, {"L": large, "M": half}[one.name])
    assert all(after - before > RETRY_CALLS for before, after in itertools.pairwise(tried))


@pytest.mark.parametrize(("text", "expected"), [("8ms", 8), ("0.5s", 500), ("8", 8), (" 2.5ms ", 2.5)])
def test_times_are_read(text, expected):
    assert read_milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "nan", "inf", "8m", "8us"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(BundleError, match="is not a time; write one such as 8ms"):
        read_milliseconds(text)
