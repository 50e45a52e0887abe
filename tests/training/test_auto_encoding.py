"""Masked auto-encoding: what is masked, what is scored, who learns, and what is left afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.nn import functional as F
from transformers import TrainingArguments, set_seed

from elastic.errors import RecipeError
from elastic.nested import get_elastic, make_elastic
from elastic.space import SearchSpace
from elastic.training import AutoEncoding, AutoEncodingTrainer, Joint
from elastic.training.auto_encoding import FILE_NAME, Masked, MaskedAutoEncoder, mask_tokens
from tests.tiny import tiny_bert_base

SPACE = SearchSpace(exit=[1, 2, 3], embedding_dim=[8, 16, 32])
MASK, SPECIAL = 4, (0, 1, 2)
HOW = AutoEncoding(MASK, SPECIAL)


def universal():
    set_seed(0)
    return make_elastic(tiny_bert_base(), SPACE)


def texts(count=32, seed=0):
    """Texts that repeat their first word, so that every token tells all others."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 30, (count, 1), generator=generator)
    ids = torch.cat([torch.full((count, 1), 1), words.expand(-1, 8), torch.full((count, 1), 2)], dim=1)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]


def pooled(returned, inputs):
    return F.normalize(returned["last_hidden_state"].mean(1), dim=-1)


def trainer(folder, model, sizes, **changes):
    arguments = {
        "per_device_train_batch_size": 16, "max_steps": 3, "learning_rate": 5e-3, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "dataloader_pin_memory": False, "remove_unused_columns": False, **changes,
    }  # fmt: skip
    space = get_elastic(model).resolved
    return AutoEncodingTrainer(
        model=model, args=TrainingArguments(str(folder), **arguments), train_dataset=texts(), embed=pooled,
        sampler=Joint([space.uniform(exit=e, embedding_dim=d) for e, d in sizes]), auto_encoding=HOW,
    )  # fmt: skip


@given(
    seed=strategies.integers(0, 2**40), length=strategies.integers(3, 40), padding=strategies.integers(0, 5),
    rates=strategies.tuples(strategies.floats(0.01, 0.9), strategies.floats(0.01, 0.9)).map(sorted),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_masks_are_nested_never_special_and_at_least_one_a_text(seed, length, padding, rates):
    how = AutoEncoding(MASK, SPECIAL, *rates)
    ids = torch.randint(5, 60, (4, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = 1, 2
    attended = torch.ones_like(ids)
    if padding and padding < length - 2:
        ids[0, -padding:], attended[0, -padding:] = 0, 0
    masked = mask_tokens(how, ids, attended, 60, seed)
    again = mask_tokens(how, ids, attended, 60, seed)
    assert all(torch.equal(tensor, vars(again)[name]) for name, tensor in vars(masked).items())
    taken, decoded = masked.targets != -100, masked.decoder_targets != -100
    assert taken.any(1).all() and (decoded | ~taken).all()
    for seen, where, target in (
        (masked.input_ids, taken, masked.targets),
        (masked.decoder_input_ids, decoded, masked.decoder_targets),
    ):
        assert torch.equal(seen[~where], ids[~where]) and torch.equal(target[where], ids[where])
        assert not torch.isin(ids[where], torch.tensor(SPECIAL)).any()
        assert attended[where].all()


def test_as_much_is_masked_as_was_asked_for():
    ids = torch.randint(5, 60, (200, 50), generator=torch.Generator().manual_seed(0))
    masked = mask_tokens(HOW, ids, torch.ones_like(ids), 60, 0)
    assert (masked.targets != -100).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (masked.decoder_targets != -100).float().mean() == pytest.approx(0.4, abs=0.01)
    kept = masked.input_ids[masked.targets != -100]
    assert (kept == MASK).float().mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("rates", [(0.0, 0.4), (0.4, 0.2), (0.2, 1.0)])
def test_rates_that_make_no_sense(rates):
    with pytest.raises(RecipeError, match="must see less"):
        AutoEncoding(MASK, SPECIAL, *rates)


@pytest.mark.parametrize("tied", [True, False])
def test_only_masked_positions_are_scored(tied):
    model = universal()
    words = model.get_input_embeddings().weight
    coder = MaskedAutoEncoder(model, AutoEncoding(MASK, SPECIAL, tied=tied)).eval()
    tokens, embeddings = torch.randn(2, 5, 32), torch.randn(2, 8)
    ids, none = torch.randint(5, 30, (2, 5)), torch.full((2, 5), -100)
    targets = none.clone()
    targets[0, 2], targets[1, 3] = 7, 9
    alone = 2 * coder(tokens, embeddings, Masked(ids, targets, ids, none), torch.ones(2, 5), words)
    read_out = words if tied else coder.vocabulary
    logits = F.linear(coder.from_tokens(tokens[[0, 1], [2, 3]][:, :8]), read_out, coder.bias)
    assert torch.allclose(alone, F.cross_entropy(logits, torch.tensor([7, 9])), atol=1e-5)
    other = torch.randn_like(tokens)
    other[0, 2, :8], other[1, 3, :8] = tokens[0, 2, :8], tokens[1, 3, :8]
    changed = 2 * coder(other, embeddings, Masked(ids, targets, ids, none), torch.ones(2, 5), words)
    assert torch.equal(alone, changed)
    decoded = 2 * coder(tokens, embeddings, Masked(ids, none, ids, targets), torch.ones(2, 5), words)
    elsewhere = 2 * coder(other, embeddings, Masked(ids, none, ids, targets), torch.ones(2, 5), words)
    assert decoded > 0 and torch.equal(decoded, elsewhere)
    assert coder(tokens, embeddings, Masked(ids, none, ids, none), torch.ones(2, 5), words) == 0


def test_the_decoder_reads_the_embedding_and_no_padding():
    model = universal()
    words = model.get_input_embeddings().weight
    coder = MaskedAutoEncoder(model, HOW).eval()
    ids, none = torch.randint(5, 30, (2, 5)), torch.full((2, 5), -100)
    targets, mask = none.clone(), torch.ones(2, 5)
    targets[:, 1], mask[:, 4] = 8, 0
    embeddings = torch.randn(2, 16)

    def loss(embeddings, ids):
        return coder(torch.zeros(2, 5, 32), embeddings, Masked(ids, none, ids, targets), mask, words)

    assert torch.allclose(loss(embeddings, ids), loss(3.0 * embeddings, ids), atol=1e-5)
    assert not torch.allclose(loss(embeddings, ids), loss(torch.randn(2, 16), ids), atol=1e-3)
    padded = ids.clone()
    padded[:, 4] = 29
    assert torch.allclose(loss(embeddings, ids), loss(embeddings, padded), atol=1e-6)


def test_the_loss_falls_and_nothing_is_left(tmp_path):
    model = universal()
    names = {name: value.clone() for name, value in model.state_dict().items()}
    made = trainer(tmp_path, model, [(1, 8), (3, 32)], max_steps=60, logging_steps=10, lr_scheduler_type="constant")
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert set(model.state_dict()) == set(names)
    assert not torch.equal(model.state_dict()["encoder.layer.0.output.dense.weight"],
                           names["encoder.layer.0.output.dense.weight"])  # fmt: skip
    model.save_pretrained(tmp_path / "saved")
    assert set(type(model).from_pretrained(tmp_path / "saved").state_dict()) == set(names)


@pytest.mark.parametrize(("exit", "dims"), [(1, 8), (2, 16)])
def test_gradients_reach_the_layers_of_a_small_size_and_no_others(tmp_path, exit, dims):
    model = universal()
    seen = {}
    made = trainer(tmp_path, model, [(exit, dims)], max_steps=1, max_grad_norm=0.0, weight_decay=0.0)
    for layer, module in enumerate(model.encoder.layer):
        module.output.dense.weight.register_hook(
            lambda grad, layer=layer: seen.update({layer: float(grad.abs().sum())})
        )
    made.train()
    assert set(seen) == set(range(exit)) and all(size > 0 for size in seen.values())


def test_all_sizes_of_a_step_see_the_same_masks_and_another_seed_sees_others(tmp_path):
    model = universal()
    made = trainer(tmp_path, model, [(1, 8), (3, 32)])
    batch = {name: torch.stack([text[name] for text in texts()]) for name in ("input_ids", "attention_mask")}
    first, again, later = (made._batch(batch, *step)["input_ids"] for step in ((0, 0), (0, 0), (1, 0)))
    assert torch.equal(first, again) and not torch.equal(first, later)
    made.args.seed = 1
    assert not torch.equal(first, made._batch(batch, 0, 0)["input_ids"])


def test_a_resumed_run_ends_like_one_that_was_never_stopped(tmp_path):
    whole, stopped = universal(), universal()
    set_seed(0)
    trainer(tmp_path / "whole", whole, [(1, 8), (3, 32)], max_steps=4, save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "whole" / "checkpoint-2" / FILE_NAME).is_file()
    set_seed(0)
    made = trainer(tmp_path / "stopped", stopped, [(1, 8), (3, 32)], max_steps=4)
    made.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, stopped.state_dict()[name], atol=1e-6), name


RANK = """
import sys
import torch
from transformers import TrainerCallback
from tests.training.test_auto_encoding import trainer, universal

class Last(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        parts = model, model.elastic_auto_encoder
        sums = [sum(p.double().abs().sum().item() for p in part.parameters()) for part in parts]
        torch.save(sums, f"{sys.argv[1]}/{args.process_index}-{state.global_step}")

made = trainer(sys.argv[1], universal(), [(1, 8), (3, 32)], per_device_train_batch_size=8, ddp_backend="gloo")
made.add_callback(Last())
made.train()
"""


@pytest.mark.slow
def test_processes_agree_on_model_and_decoder(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "rank.py"), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    first = torch.load(tmp_path / "0-1")
    for step in (1, 2, 3):
        assert torch.load(tmp_path / f"0-{step}") == pytest.approx(torch.load(tmp_path / f"1-{step}"), rel=1e-12)
    assert torch.load(tmp_path / "0-3")[1] != first[1]
