"""Text for language models: characters as tokens."""

from __future__ import annotations

from elastic.data.text import text_task
from elastic.recipe import TextData


def test_characters_are_tokens(tmp_path):
    path = tmp_path / "text.txt"
    text = "To be, or not to be:\nthat is the question.\n" * 40
    path.write_text(text)
    task = text_task(TextData(source="text", paths=(str(path),), characters=True, sequence_length=16))
    assert task.model_config["vocab_size"] == len(set(text)) + 2
    ids = task.datasets["train"][0]["input_ids"]
    assert task.tokenizer.decode(ids) == text[:16]
    assert task.tokenizer("ü")["input_ids"] == [task.tokenizer.unk_token_id]
