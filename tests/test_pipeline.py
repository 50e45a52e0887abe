"""Building models from recipes, and finding the checkpoint to resume from."""

from __future__ import annotations

import pytest
import torch

from elastic.data import load_task
from elastic.errors import RecipeError
from elastic.nested import get_elastic
from elastic.pipeline.models import build_model
from elastic.pipeline.training import last_complete_checkpoint
from elastic.recipe import parse_recipe
from tests.tiny import tiny_llama, tiny_vit


def recipe(pretrained, **changes):
    data = {
        "name": "tiny",
        "task": "image-classification",
        "model": {"pretrained": str(pretrained)},
        "data": {"source": "digits"},
        "space": {"ffn": [0.5, 1.0]},
    }
    return parse_recipe({**data, **changes}, "test")


def build(*arguments, **changes):
    made = recipe(*arguments, **changes)
    return build_model(made, load_task(made))


def test_a_pretrained_model_keeps_its_body_and_gets_a_head_for_the_labels(tmp_path):
    before = tiny_vit()
    before.save_pretrained(tmp_path / "vit")
    after = build(tmp_path / "vit")
    assert after.config.num_labels == 10
    assert after.classifier.out_features == 10
    assert get_elastic(after).resolved.ffn == (32, 64)
    for (name, old), new in zip(before.vit.named_parameters(), after.vit.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_a_pretrained_model_of_another_size_or_kind_is_refused(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path / "vit")
    with pytest.raises(RecipeError, match="do not fit its configuration: '.*' is missing or of another size"):
        build(tmp_path / "vit", model={"pretrained": str(tmp_path / "vit"), "config": {"intermediate_size": 32}})
    with pytest.raises(RecipeError, match="cannot be loaded"):
        build(tmp_path / "nowhere")
    model.config.image_size = 16
    type(model)(model.config).save_pretrained(tmp_path / "large")
    with pytest.raises(RecipeError, match="the images have image_size 8, and the model '.*' takes 16"):
        build(tmp_path / "large")


def test_a_pretrained_decoder_needs_its_own_tokenizer(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    text = {"source": "text", "paths": [str(tmp_path / "text.txt")], "vocab_size": 300, "sequence_length": 16}
    with pytest.raises(RecipeError, match="name its own tokenizer in data.tokenizer"):
        build(tmp_path / "llama", task="causal-lm", data=text)


def test_the_last_complete_checkpoint(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"half'), (100, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
