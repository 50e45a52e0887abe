"""Speculative decoding says exactly what greedy decoding says, whatever the draft."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic import speculative_generate
from elastic.errors import ElasticError, SpaceError
from elastic.generation import check_draft
from elastic.nested import active, get_elastic
from elastic.space import Subnet
from tests.conftest import fitting, subnets
from tests.tiny import DECODERS

FULL = Subnet(ffn=(64,) * 3, heads=(4,) * 3)
EXIT = Subnet(ffn=(64, 0, 0), heads=(4, 0, 0))
decoders = pytest.mark.parametrize("universal", DECODERS, indirect=True)


def exact(model):
    """Double precision: a pass over several tokens rounds other than one over one, and random models have near ties."""
    return model.double()


def greedy(model, prompt, target=FULL, **arguments):
    arguments = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, **arguments}
    with active(model, target):
        return model.generate(prompt, do_sample=False, **arguments)


def prompts(max_size=9):
    return st.lists(st.integers(1, 59), min_size=1, max_size=max_size).map(lambda tokens: torch.tensor([tokens]))


@st.composite
def drafts(draw, target=FULL):
    """Any widths, any later sub-layers skipped, the attention of all others that of the target."""
    ffn = draw(st.tuples(*[st.integers(0, 64)] * 3))
    kept = (True, *draw(st.tuples(st.booleans(), st.booleans())))
    return Subnet(ffn, tuple(heads if keep else 0 for heads, keep in zip(target.heads, kept, strict=True)))


@decoders
@given(prompt=prompts(), draft=drafts(), num_draft=st.integers(1, 6), new=st.integers(1, 14))
def test_tokens_equal_greedy_decoding(universal, prompt, draft, num_draft, new):
    exact(universal)
    if skips_a_counting_layer(universal, draft):
        return
    result = speculative_generate(universal, draft, prompt, max_new_tokens=new, num_draft=num_draft)
    assert torch.equal(result.sequences, greedy(universal, prompt, max_new_tokens=new))
    assert result.target_passes == new - sum(result.accepted)
    assert all(
        accepted <= drafted <= num_draft for accepted, drafted in zip(result.accepted, result.drafted, strict=True)
    )


def skips_a_counting_layer(model, draft):
    """Layers of each kind of attention are counted at the first; Gemma 3's first of full attention is its second."""
    types = getattr(model.config, "layer_types", None) or ["full_attention"] * 3
    firsts = {kind: types.index(kind) for kind in types}
    return any(
        not draft.heads[first] and any(draft.heads[i] for i, t in enumerate(types) if t == kind)
        for kind, first in firsts.items()
    )


@decoders
@given(prompt=prompts(), target=subnets(), data=st.data())
def test_any_target(universal, prompt, target, data):
    exact(universal)
    target = fitting(universal, target)
    draft = replace(data.draw(drafts(target)), hidden=target.hidden)
    if skips_a_counting_layer(universal, draft) or not draft.kept_layers:
        return
    result = speculative_generate(universal, draft, prompt, target=target, max_new_tokens=10)
    assert torch.equal(result.sequences, greedy(universal, prompt, target, max_new_tokens=10))
    with active(universal, target):
        assert torch.equal(
            speculative_generate(universal, draft, prompt, max_new_tokens=10).sequences, result.sequences
        )


@decoders
def test_the_target_as_its_own_draft_is_always_right(universal):
    prompt = torch.tensor([[5, 7, 9]])
    result = speculative_generate(exact(universal), FULL, prompt, max_new_tokens=16, num_draft=4)
    assert result.accepted == result.drafted == (4, 4, 4)
    assert result.target_passes == 4
    assert result.accepted_per_draft == 4
    assert result.acceptance == 1


def test_some_of_a_draft_is_accepted(universal_llama):
    """Later layers that change little make of the first a draft that is sometimes right."""
    quiet = universal_llama
    with torch.no_grad():
        for layer in quiet.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.5)
            layer.mlp.down_proj.weight.mul_(0.5)
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    result = speculative_generate(quiet, EXIT, prompt, max_new_tokens=40)
    assert 0 < sum(result.accepted) < sum(result.drafted)
    assert result.target_passes < 40
    assert torch.equal(result.sequences, greedy(quiet, prompt, max_new_tokens=40))


@pytest.fixture
def universal_llama(_universal_models):
    return exact(copy.deepcopy(_universal_models["llama"]))


@given(prompt=prompts(), draft=drafts(), position=st.integers(0, 9))
def test_the_end_token_ends(universal_llama, prompt, draft, position):
    model = universal_llama
    model.generation_config.eos_token_id = None
    end = int(greedy(model, prompt)[0, prompt.shape[1] + position])
    for ends in (end, [end, 59]):
        expected = greedy(model, prompt, eos_token_id=ends)
        result = speculative_generate(model, draft, prompt, max_new_tokens=12, eos_token_id=ends)
        assert torch.equal(result.sequences, expected)
    model.generation_config.eos_token_id = end
    result = speculative_generate(model, draft, prompt, max_new_tokens=12)
    assert torch.equal(result.sequences, greedy(model, prompt))


@decoders
def test_a_padded_prompt(universal):
    exact(universal)
    prompt, mask = torch.tensor([[0, 0, 5, 7, 9]]), torch.tensor([[0, 0, 1, 1, 1]])
    result = speculative_generate(universal, EXIT, prompt, mask, max_new_tokens=9)
    assert torch.equal(result.sequences, greedy(universal, prompt, attention_mask=mask, max_new_tokens=9))


def test_what_the_draft_wrote_does_not_count(universal_llama):
    """A draft of noise: its keys and values are far from the target's, and nothing of them is left."""
    prompt = torch.tensor([[5, 7, 9]])
    expected = greedy(universal_llama, prompt)
    draft = Subnet(ffn=(0, 0, 0), heads=(4, 4, 4))
    assert torch.equal(speculative_generate(universal_llama, draft, prompt, max_new_tokens=12).sequences, expected)


def test_the_active_subnet_and_the_mode_are_restored(universal_llama):
    small = Subnet(ffn=(16,) * 3, heads=(4,) * 3)
    universal_llama.train()
    with active(universal_llama, small):
        speculative_generate(universal_llama, EXIT, torch.tensor([[5]]), max_new_tokens=3)
        assert get_elastic(universal_llama).active.current == small
    assert universal_llama.training
    assert get_elastic(universal_llama).active.current == FULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, "one prompt at a time, of shape 1xtokens, not 2x3"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "not 1x0"),
        ({"attention_mask": torch.ones(1, 9)}, "the attention mask is 1x9, and the prompt 1x3"),
        ({"num_draft": 0}, "num_draft=0 must be 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"max_new_tokens": 62}, "more than the 64 that the model takes; lower max_new_tokens to 61"),
        ({"draft": Subnet(ffn=(64,) * 3, heads=(4, 2, 4))}, "2 query heads in layer 1, and the target 4"),
        ({"draft": Subnet(ffn=(64,) * 3, heads=(0, 4, 4))}, "skips the attention of layer 0"),
        ({"draft": Subnet(ffn=(64,) * 2, heads=(4, 4))}, "the subnet has 2 layers"),
    ],
)
def test_bad_input_is_one_sentence(universal_llama, arguments, message):
    given = {"draft": EXIT, "max_new_tokens": 9, "input_ids": torch.ones(1, 3, dtype=torch.long), **arguments}
    with pytest.raises(ElasticError, match=message):
        speculative_generate(universal_llama, **given)


def test_drafts_of_another_width_are_refused():
    with pytest.raises(SpaceError, match="not as wide as the target's"):
        check_draft(Subnet(ffn=(8,), heads=(1,), hidden=16), Subnet(ffn=(8,), heads=(1,)))


@pytest.mark.parametrize("universal", ["bert"], indirect=True)
def test_only_decoders(universal):
    with pytest.raises(ElasticError, match="generates no text"):
        speculative_generate(universal, FULL, torch.tensor([[5]]))
