"""Search spaces and subnets: values, validation, counting, sampling."""

from __future__ import annotations

import copy
import itertools
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import SpaceError
from elastic.space import ModelDims, SearchSpace, Subnet, check_subnet, evenly_spaced, read_subnet

DIMS = ModelDims(num_layers=4, ffn=64, heads=8, kv_heads=4, hidden=32)


def test_fractions_become_whole_numbers():
    space = SearchSpace(ffn=[0.125, 0.5, 1], heads=[2, 1.0], layers=[0.5, 1.0]).resolve(DIMS)
    assert space.ffn == (8, 32, 64)
    assert space.heads == (2, 8)
    assert space.layers == (2, 4)
    assert space.attention == (4,)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fnn": [0.5]}, "unknown axis 'fnn' in the search space; did you mean 'ffn'?"),
        ({"ffn": [128]}, "ffn=128 is above the maximum of this model, which is 64"),
        ({"ffn": [0.3]}, "ffn=0.3 of 64 is 19.2, not a whole number"),
        ({"heads": [3]}, "heads=3 is 3 query heads, which does not divide into key-value groups of 2"),
        ({"layers": [5]}, "layers=5 is above the maximum of this model, which is 4"),
        ({"ffn": [1.5]}, "axis 'ffn' has the fraction 1.5; a fraction lies in"),
        ({"ffn": [0]}, "axis 'ffn' has the choice 0; the smallest is 1"),
        ({"ffn": []}, "axis 'ffn' needs a list of choices"),
        ({"ffn": ["half"]}, "axis 'ffn' has the choice 'half'; a choice is a number"),
        ({"ffn": 0.5}, "axis 'ffn' needs a list of choices"),
    ],
)
def test_spaces_that_make_no_sense(axes, message):
    with pytest.raises(SpaceError) as caught:
        SearchSpace.from_dict(axes).resolve(DIMS)
    assert message in str(caught.value)


def test_space_round_trip():
    space = SearchSpace(ffn=[0.25, 1.0], layers=[2, 4])
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert "heads" not in space.to_dict()


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_evenly_spaced(sizes):
    num_items, kept = sizes
    chosen = evenly_spaced(num_items, kept)
    assert len(chosen) == len(set(chosen)) == kept
    assert list(chosen) == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] == (num_items - 1 if kept > 1 else 0)
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


SPACE = SearchSpace(ffn=[0.25, 1.0], heads=[0.5, 1.0], layers=[2, 4], attention=[3, 4]).resolve(DIMS)


def test_count_equals_enumeration():
    subnets = set()
    for attention, mlp in SPACE.skeletons():
        for ffn in itertools.product(SPACE.ffn, repeat=len(mlp)):
            for heads in itertools.product(SPACE.heads, repeat=len(attention)):
                widths, counts = iter(ffn), iter(heads)
                layers = range(DIMS.num_layers)
                subnets.add(
                    Subnet(
                        tuple(next(widths) if i in mlp else 0 for i in layers),
                        tuple(next(counts) if i in attention else 0 for i in layers),
                    )
                )
    assert SPACE.num_subnets == len(subnets)
    assert all(subnet in SPACE for subnet in subnets)


@given(st.integers())
def test_samples_lie_in_the_space(seed):
    subnet = SPACE.sample(random.Random(seed))
    assert subnet in SPACE
    check_subnet(subnet, DIMS)
    assert subnet == SPACE.sample(random.Random(seed))


def test_mixtures_never_decrease_and_step_once():
    for subnet in SPACE.min_slope_mixtures():
        assert subnet in SPACE
        for values in (subnet.ffn, subnet.heads):
            used = [v for v in values if v]
            assert used == sorted(used)
            assert len(set(used)) <= 2


def test_largest_and_smallest_are_in_the_space():
    assert SPACE.largest == Subnet((64,) * 4, (8,) * 4)
    assert SPACE.smallest == Subnet((16, 0, 0, 16), (4, 0, 0, 4))
    assert {SPACE.largest, SPACE.smallest} <= set(SPACE.uniform_subnets())


def test_uniform_refuses_other_choices():
    with pytest.raises(SpaceError, match=r"ffn=20 is not in the space; its choices are \[16, 64\]"):
        SPACE.uniform(ffn=20)
    with pytest.raises(SpaceError, match="unknown axis 'depth'"):
        SPACE.uniform(depth=2)


def test_granularities_are_written_as_fractions():
    assert SPACE.granularity({"ffn": 0.25, "layers": 0.5}) == SPACE.uniform(ffn=16, layers=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a subnet is written as"),
        ('{"ffn": [1], "depth": [1]}', "unknown axis 'depth'"),
        ('{"ffn": [1]}', "needs a list 'heads'"),
        ('{"ffn": [1.5], "heads": [1]}', "ffn=1.5 of layer 0 must be a whole number"),
        ('{"ffn": [-1], "heads": [1]}', "ffn=-1 of layer 0 must be a whole number"),
        ('{"ffn": [1, 2], "heads": [1]}', "not 2 widths and 1 head counts"),
    ],
)
def test_subnets_that_cannot_be_read(text, message):
    with pytest.raises(SpaceError) as caught:
        read_subnet(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet((64,), (8,)), "the subnet has 1 layers, and the model has 4"),
        (Subnet((64, 65, 64, 64), (8,) * 4), "ffn=65 of layer 1 is above the maximum"),
        (Subnet((64,) * 4, (8, 8, 10, 8)), "heads=10 of layer 2 is above the maximum"),
        (Subnet((64,) * 4, (8, 8, 8, 3)), "heads=3 of layer 3 does not divide into key-value groups of 2"),
        (Subnet((0,) * 4, (0,) * 4), "skips every layer"),
    ],
)
def test_subnets_that_a_model_cannot_run(subnet, message):
    with pytest.raises(SpaceError, match=message):
        check_subnet(subnet, DIMS)


def test_subnet_round_trip_and_hash():
    subnet = Subnet([16, 0, 0, 16], [4, 0, 0, 4])
    assert read_subnet(f'{{"subnet": {subnet.to_dict()}}}'.replace("'", '"')) == subnet
    assert hash(Subnet.from_dict(subnet.to_dict())) == hash(subnet)
    assert subnet.kept_layers == (0, 3)
    assert subnet.is_uniform
    assert not Subnet([16, 0, 0, 16], [4, 0, 4, 4]).is_uniform
    assert subnet.describe() == "2/4 layers, ffn 16, heads 4"


def test_a_part_of_a_space_may_be_the_maximum_alone():
    space = SearchSpace(ffn=[0.25, 1.0], layers=[2, 4]).resolve(DIMS)
    part = space.within(SearchSpace.from_dict({"ffn": [1.0]}))
    assert (part.ffn, part.layers) == ((DIMS.ffn,), (2, 4))
    assert space.within(SearchSpace()) == space
    assert copy.deepcopy(pickle.loads(pickle.dumps(SearchSpace(ffn=[1.0])))).named == ("ffn",)
    assert SearchSpace(ffn=[1.0]) == SearchSpace()
