"""Extracted subnets as assistants in transformers' own assisted generation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from elastic.extraction import extract
from elastic.nested import active
from elastic.space import Subnet
from tests.conftest import fitting, subnets
from tests.generation.test_speculative import exact, greedy, prompts
from tests.tiny import DECODERS

decoders = pytest.mark.parametrize("universal", DECODERS, indirect=True)

DRAFTS = [
    Subnet(ffn=(16,) * 3, heads=(4,) * 3),
    Subnet(ffn=(16,) * 3, heads=(2,) * 3),
    Subnet(ffn=(64, 16, 32), heads=(2, 4, 2)),
    Subnet(ffn=(64, 0, 0), heads=(4, 0, 0)),
    Subnet(ffn=(0, 64, 16), heads=(0, 4, 2)),
    Subnet(ffn=(64, 64, 16), heads=(0, 4, 2)),
    Subnet(ffn=(64, 0, 16), heads=(4, 4, 0)),
]


@decoders
@pytest.mark.parametrize("draft", DRAFTS, ids=Subnet.describe)
def test_the_universal_model_with_an_extracted_assistant(universal, draft):
    exact(universal)
    assistant = extract(universal, draft)
    prompt = torch.tensor([[3, 1, 4]])
    arguments = {"max_new_tokens": 12, "attention_mask": torch.ones_like(prompt)}
    assisted = universal.generate(prompt, do_sample=False, assistant_model=assistant, **arguments)
    assert torch.equal(assisted, greedy(universal, prompt, **arguments))


@decoders
@given(prompt=prompts(), target=subnets(), draft=subnets())
def test_any_subnet_assists_any_other(universal, prompt, target, draft):
    """Active in the universal model, or extracted."""
    exact(universal)
    target, draft = fitting(universal, target), fitting(universal, draft)
    assistant, large = extract(universal, draft), extract(universal, target)
    arguments = {"max_new_tokens": 8, "attention_mask": torch.ones_like(prompt), "do_sample": False}
    expected = greedy(universal, prompt, target, max_new_tokens=8)
    assert torch.equal(large.generate(prompt, assistant_model=assistant, **arguments), expected)
    with active(universal, target):
        assert torch.equal(universal.generate(prompt, assistant_model=assistant, **arguments), expected)


@decoders
@pytest.mark.parametrize("heads", [(0, 4, 2), (4, 0, 0), (2, 4, 4)])
def test_every_token_of_an_assistant_that_is_the_target_is_accepted(universal, heads):
    """So its cache is cut back to the right length, also where its first attention is skipped."""
    subnet = fitting(universal, Subnet(ffn=(64, 16, 32), heads=heads))
    assistant = extract(exact(universal), subnet)
    settings = assistant.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = 4, "constant"
    settings.assistant_confidence_threshold = 0.0
    lengths = []
    universal.register_forward_pre_hook(lambda *args: lengths.append(args[2]["input_ids"].shape[1]), with_kwargs=True)
    prompt = torch.tensor([[3, 1, 4]])
    arguments = {"max_new_tokens": 15, "attention_mask": torch.ones_like(prompt), "do_sample": False}
    with active(universal, subnet):
        universal.generate(prompt, assistant_model=assistant, **arguments)
    assert lengths == [3 + 4, 5, 5]
