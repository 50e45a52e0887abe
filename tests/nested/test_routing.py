"""Routers: skipped rows agree with a dense mask, decisions stay with call and cache, files hold them."""

from __future__ import annotations

import copy
import dataclasses
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elastic.errors import CheckpointError, ElasticError, SpaceError
from elastic.extraction import extract, largest_difference, sample_inputs
from elastic.nested import (
    GateKey,
    Routing,
    active,
    add_routers,
    get_elastic,
    get_routers,
    make_elastic,
    read_routers,
    routed,
    write_routers,
)
from elastic.nested.gates import _valid_tokens
from elastic.space import SearchSpace, Subnet
from tests.conftest import make_tiny_elastic
from tests.tiny import DECODERS, MODELS, tiny_llama, tiny_vit

WHATS = ("attention", "mlp", "block")


def disagreeing(model, what="attention", layers=(0, 1, 2), batch=5, seed=0):
    """Give a model routers whose gates differ from row to row, and return its inputs."""
    add_routers(model, Routing(what, layers))
    inputs = sample_inputs(model.config, batch=batch)
    generator = torch.Generator().manual_seed(seed)
    for router in get_routers(model).values():
        with torch.no_grad():
            router.weight.copy_(torch.randn(router.weight.shape, generator=generator))
    for router in get_routers(model).values():
        # Layer after layer, because an earlier gate changes what a later router reads.
        with torch.no_grad(), routed(model, dense=True) as trace:
            model(**inputs)
        score = dict(zip(get_routers(model), trace.scores.values(), strict=True))
        name = next(n for n, r in get_routers(model).items() if r is router)
        with torch.no_grad():
            router.bias.sub_(torch.logit(score[name]).sort().values[1:3].mean())
    return inputs


def outputs(model, inputs, **kwargs):
    with torch.no_grad(), routed(model, **kwargs) as trace:
        return model(**inputs)[0], trace


@pytest.mark.parametrize("what", WHATS)
def test_skipped_rows_are_those_of_a_dense_mask(universal, what):
    inputs = disagreeing(universal, what)
    sparse, gates = outputs(universal, inputs)
    dense, masked = outputs(universal, inputs, dense=True)
    assert largest_difference(sparse, dense) <= 1e-5
    assert all(torch.equal(gates.gates[key], masked.gates[key]) for key in masked.gates)
    assert all(0 < share < 1 for share in gates.usage.values())
    with torch.no_grad():
        assert largest_difference(sparse, universal(**inputs)[0]) > 1e-4


def of_row(universal, gates, row):
    """The subnet that one row of a batch ran."""
    dims = get_elastic(universal).dims
    off = {key for key, gate in gates.items() if not gate[row]}

    def kept(size, what):
        return tuple(0 if {GateKey(what, i), GateKey("block", i)} & off else size for i in range(dims.num_layers))

    return Subnet(kept(dims.ffn, "mlp"), kept(dims.heads, "attention"))


@pytest.mark.parametrize("what", WHATS)
def test_each_row_is_the_subnet_of_its_gates(universal, what):
    inputs = disagreeing(universal, what, layers=(0, 1))
    actual, trace = outputs(universal, inputs)
    for row in range(5):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        with torch.no_grad(), active(universal, of_row(universal, trace.gates, row)):
            assert largest_difference(universal(**alone)[0], actual[row : row + 1]) <= 1e-5
        assert largest_difference(outputs(universal, alone)[0], actual[row : row + 1]) <= 1e-5


def test_routers_change_nothing_until_they_are_asked(universal, tmp_path):
    inputs = sample_inputs(universal.config, batch=2)
    with torch.no_grad():
        expected = universal(**inputs)[0]
    disagreeing(universal)
    with torch.no_grad():
        assert torch.equal(universal(**inputs)[0], expected)
    universal.save_pretrained(tmp_path)
    stock = type(universal).from_pretrained(tmp_path, output_loading_info=True)
    assert not stock[1]["unexpected_keys"] and not stock[1]["missing_keys"]
    assert largest_difference(stock[0].eval()(**inputs)[0], expected) == 0


def test_new_routers_let_everything_through():
    model = add_routers(make_tiny_elastic(tiny_vit()), Routing("block", (0, 1)))
    inputs = sample_inputs(model.config, batch=3)
    actual, trace = outputs(model, inputs)
    with torch.no_grad():
        assert torch.equal(actual, model(**inputs)[0])
    assert trace.capacity == 1.0
    assert set(trace.usage) == {GateKey("block", 0), GateKey("block", 1)}


def test_what_is_skipped_is_not_computed():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)

    def flops(rows, **kwargs):
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        with torch.no_grad(), routed(model, **kwargs) as trace, FlopCounterMode(display=False) as counter:
            model(**batch)
        return counter.get_total_flops(), trace

    together, trace = flops(slice(0, 5))
    alone = 0
    for row in range(5):
        with torch.no_grad(), active(model, of_row(model, trace.gates, row)), FlopCounterMode(display=False) as counter:
            model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        alone += counter.get_total_flops()
    assert together == alone < flops(slice(0, 5), dense=True)[0]


def test_the_threshold_is_a_budget():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    shares = [outputs(model, inputs, threshold=t)[1].capacity for t in (1e-6, 0.5, 1 - 1e-6)]
    assert shares[0] == 1.0 > shares[1] > shares[2] == 0.0
    with pytest.raises(SpaceError, match=r"threshold of routers is 1.0, and must lie between 0 and 1"):
        outputs(model, inputs, threshold=1.0)


def test_an_unknown_gradient_is_refused():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    with pytest.raises(ElasticError, match="'exact' of routers is not one of interpolated, straight_through"):
        outputs(model, inputs, gradient="exact")


def test_a_subnet_that_skips_needs_no_router():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    with active(model, Subnet(ffn=(16, 16, 16), heads=(0, 2, 4))):
        _, trace = outputs(model, inputs)
    assert set(trace.gates) == {GateKey("attention", 1), GateKey("attention", 2)}


@pytest.mark.parametrize("name", ["vit", "bert", "llama"])
def test_a_narrower_stream_uses_the_first_weights_of_a_router(name):
    model = make_elastic(MODELS[name](), SearchSpace(hidden=[16, 32]))
    inputs = disagreeing(model)
    with active(model, Subnet((64, 64, 64), (4, 4, 4), hidden=16)):
        sparse, trace = outputs(model, inputs)
        dense, _ = outputs(model, inputs, dense=True)
        assert largest_difference(sparse, dense) <= 1e-5
        assert len(trace.gates) == 3
        for row in range(5):
            subnet = dataclasses.replace(of_row(model, trace.gates, row), hidden=16)
            alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            with torch.no_grad(), active(model, subnet):
                assert largest_difference(model(**alone)[0], sparse[row : row + 1]) <= 1e-5


def test_padding_does_not_decide():
    model = make_tiny_elastic(MODELS["bert"]())
    inputs = disagreeing(model)
    _, trace = outputs(model, inputs)
    row = 2  # sample_inputs pads all rows but the first
    short = {name: tensor[row : row + 1, : int(inputs["attention_mask"][row].sum())] for name, tensor in inputs.items()}
    _, alone = outputs(model, short)
    for key, scores in alone.scores.items():
        assert torch.allclose(scores, trace.scores[key][row : row + 1], atol=1e-6)


# Decisions belong to the call


def test_a_copy_and_another_thread_are_not_routed():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    with torch.no_grad():
        full = model(**inputs)[0]
    expected, _ = outputs(model, inputs)
    copied = copy.deepcopy(model)
    seen = {}

    def elsewhere():
        with torch.no_grad():
            seen["thread"] = model(**inputs)[0]

    with torch.no_grad(), routed(model):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert torch.equal(copied(**inputs)[0], full)
        assert torch.equal(model(**inputs)[0], expected)
    assert torch.equal(seen["thread"], full)
    assert torch.equal(outputs(copied, inputs)[0], expected)


def test_an_error_ends_the_pass():
    model = make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    with torch.no_grad():
        full = model(**inputs)[0]
    with pytest.raises(Exception, match="size|shape|channel"), routed(model):
        model(pixel_values=torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], full)


def prompt(model, batch=4, length=7):
    """Prompts, padded on the left, over which the gates disagree."""
    disagreeing(model)
    ids = torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    for router in get_routers(model).values():
        with torch.no_grad(), routed(model, dense=True) as trace:
            model(**inputs, position_ids=positions(mask))
        score = dict(zip(get_routers(model), trace.scores.values(), strict=True))
        name = next(n for n, r in get_routers(model).items() if r is router)
        with torch.no_grad():
            router.bias.sub_(torch.logit(score[name]).sort().values[1:3].mean())
    return inputs


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def steps(model, inputs, following, cache=None):
    """Feed tokens one after the other, and return the logits of each and the cache."""
    ids, mask, given = inputs["input_ids"], inputs["attention_mask"], []
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True)
        for token in following.T:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            result = model(
                input_ids=token[:, None], attention_mask=mask, position_ids=positions(mask)[:, -1:],
                past_key_values=result.past_key_values, use_cache=True,
            )  # fmt: skip
            given.append(result.logits[:, -1])
    return torch.stack(given, 1), result.past_key_values


@pytest.mark.parametrize("universal", DECODERS, indirect=True)
def test_the_gates_of_the_prompt_decide_about_all_that_follows(universal):
    inputs = prompt(universal)
    following = torch.randint(1, 60, (4, 5), generator=torch.Generator().manual_seed(4))
    with routed(universal) as trace:
        cached, cache = steps(universal, inputs, following)
    assert 0 < trace.capacity < 1
    assert all(len(gate) == 4 for gate in trace.gates.values())
    for row in range(4):
        ids = torch.cat([inputs["input_ids"][row], following[row]])[None]
        mask = torch.cat([inputs["attention_mask"][row], torch.ones(5, dtype=torch.long)])[None]
        with torch.no_grad(), active(universal, of_row(universal, trace.gates, row)):
            whole = universal(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        assert largest_difference(whole[:, -5:], cached[row : row + 1]) <= 2e-5
    # A request goes on as it began, also outside of the block.
    with torch.no_grad():
        mask = torch.ones(4, 13, dtype=torch.long)
        mask[1, :3] = 0
        one = {"input_ids": following[:, :1], "attention_mask": mask, "position_ids": positions(mask)[:, -1:]}
        copied = copy.deepcopy(cache)
        outside = universal(**one, past_key_values=cache).logits
        with routed(universal):
            assert torch.equal(outside, universal(**one, past_key_values=copied).logits)


@pytest.mark.parametrize("universal", ["llama", "gpt2", "gemma3"], indirect=True)
def test_generation_with_cache_is_that_of_each_rows_subnet(universal):
    inputs = prompt(universal)
    settings = {"max_new_tokens": 8, "do_sample": False}
    with routed(universal) as trace:
        together = universal.generate(**inputs, **settings)
    for row in range(4):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        small = extract(universal, of_row(universal, trace.gates, row))
        assert torch.equal(small.generate(**alone, use_cache=False, **settings), together[row : row + 1])


@pytest.mark.parametrize("universal", ["llama", "gpt2", "gemma3"], indirect=True)
def test_beams_keep_the_decisions_of_their_request(universal):
    inputs = prompt(universal)
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "num_return_sequences": 3}
    with routed(universal) as trace:
        together = universal.generate(**inputs, **settings).view(4, 3, -1)
    assert all(len(gate) == 12 for gate in trace.gates.values())
    for row in range(4):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        small = extract(universal, of_row(universal, trace.gates, 3 * row))
        assert torch.equal(small.generate(**alone, use_cache=False, **settings), together[row])


def test_interleaved_requests_do_not_disturb_each_other():
    model = make_tiny_elastic(tiny_llama())
    inputs = prompt(model)
    following = torch.randint(1, 60, (4, 5), generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), routed(model):
        rows = [{name: tensor[row : row + 1] for name, tensor in inputs.items()} for row in (0, 2, 3)]
        expected = [steps(model, row, following[:1])[0] for row in rows]
        masks = [row["attention_mask"] for row in rows]
        caches = [model(**row, use_cache=True).past_key_values for row in rows]
        given = [[] for _ in rows]
        for token in following[:1].T:
            for index in range(3):
                masks[index] = torch.cat([masks[index], torch.ones_like(masks[index][:, :1])], 1)
                result = model(token[:, None], attention_mask=masks[index], past_key_values=caches[index])
                given[index].append(result.logits[:, -1])
    assert len({tuple(bool(on) for on in cache.elastic_gates.values()) for cache in caches}) > 1
    for one, other in zip(expected, given, strict=True):
        assert largest_difference(one, torch.stack(other, 1)) <= 1e-5


def test_decisions_follow_the_rows_of_a_cache():
    model = make_tiny_elastic(tiny_llama())
    inputs = prompt(model)
    following = torch.randint(1, 60, (4, 1), generator=torch.Generator().manual_seed(4))
    with routed(model):
        whole, _ = steps(model, inputs, following.repeat(1, 2))
        _, cache = steps(model, inputs, following)
    order = torch.tensor([2, 0, 3, 1])
    mask = torch.cat([inputs["attention_mask"], torch.ones(4, 2, dtype=torch.long)], 1)

    def last(cache, rows):
        one = {"attention_mask": mask[rows], "position_ids": positions(mask[rows])[:, -1:]}
        with torch.no_grad(), routed(model):
            return model(following[rows], past_key_values=cache, **one).logits[:, -1]

    reordered, selected, repeated = (copy.deepcopy(cache) for _ in range(3))
    reordered.reorder_cache(order)
    assert largest_difference(last(reordered, order), whole[order, 1]) <= 1e-5
    selected.batch_select_indices(order[:1])
    assert largest_difference(last(selected, order[:1]), whole[order[:1], 1]) <= 1e-5
    repeated.batch_repeat_interleave(2)
    twice = torch.arange(4).repeat_interleave(2)
    assert largest_difference(last(repeated, twice), whole[twice, 1]) <= 1e-5
    cache.reset()
    assert cache.elastic_gates == {}


def test_a_request_that_began_without_routers_goes_on_without():
    model = make_tiny_elastic(tiny_llama())
    inputs = prompt(model)
    token = inputs["input_ids"][:, :1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], 1)
    one = {"attention_mask": mask, "position_ids": positions(mask)[:, -1:]}
    with torch.no_grad():
        start = model(**inputs, position_ids=positions(inputs["attention_mask"]), use_cache=True).past_key_values
        copied = copy.deepcopy(start)
        expected = model(token, past_key_values=start, **one).logits
        with routed(model):
            assert torch.equal(model(token, past_key_values=copied, **one).logits, expected)


@pytest.mark.parametrize("universal", ["llama", "gemma3"], indirect=True)
def test_a_static_cache_changes_nothing(universal):
    inputs = prompt(universal)
    settings = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True}
    with routed(universal) as dynamic:
        expected = universal.generate(**inputs, **settings)
    with routed(universal) as static:
        assert torch.equal(universal.generate(**inputs, **settings, cache_implementation="static"), expected)
    assert static.usage == dynamic.usage


def test_masks_say_the_same_in_any_form():
    two = torch.tensor([[1, 1, 1], [0, 1, 1]])
    causal = torch.ones(3, 5, dtype=torch.bool).tril()
    four = (causal & torch.nn.functional.pad(two, (0, 2)).bool()[:, None, :])[:, None]
    added = torch.zeros(four.shape).masked_fill(~four, torch.finfo(torch.float32).min)
    for mask in (two, four, added, {"full_attention": four}):
        assert torch.equal(_valid_tokens(mask, 3).long(), two)
    with pytest.raises(ElasticError, match="and this one is neither"):
        _valid_tokens(torch.ones(3), 3)


# Files and errors


def test_routers_lie_in_a_file_of_their_own(tmp_path):
    model, other = make_tiny_elastic(tiny_vit()), make_tiny_elastic(tiny_vit())
    inputs = disagreeing(model)
    write_routers(model, tmp_path)
    read_routers(add_routers(other, Routing("attention", (0, 1, 2))), tmp_path)
    assert torch.equal(outputs(other, inputs)[0], outputs(model, inputs)[0])
    with pytest.raises(CheckpointError, match="does not hold the routers of this model"):
        read_routers(add_routers(other, Routing("mlp", (0,))), tmp_path)
    with pytest.raises(CheckpointError, match=r"has no routers.safetensors"):
        read_routers(other, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("what", "layers", "message"),
    [
        ("heads", (0,), "routers of 'heads' are unknown; choose attention, mlp, block"),
        ("mlp", (), "must be one or more, each once"),
        ("mlp", (1, 1), "must be one or more, each once"),
        ("mlp", (3,), "layer 3 cannot have a router; the model has layers 0 to 2"),
    ],
)
def test_wrong_routings_are_refused(what, layers, message):
    with pytest.raises(SpaceError, match=message):
        add_routers(make_tiny_elastic(tiny_vit()), Routing(what, layers))


def test_a_model_without_routers_is_refused():
    with pytest.raises(ElasticError, match="has no routers; train some"), routed(make_tiny_elastic(tiny_vit())):
        pass
    with pytest.raises(ElasticError, match="is not elastic"), routed(tiny_vit()):
        pass
