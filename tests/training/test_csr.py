"""Sparse codes: as sparse as asked, trained alone, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sparse_encoder import SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder.losses import CSRLoss

from elastic.errors import ElasticError
from elastic.training.csr import make_sparse_embedder
from tests.embedder import write_embedder

TEXTS = ["the cat sits on the mat", "a red bird sings loudly", "old dog runs slowly", "quick cat near tree"] * 4


@pytest.fixture
def sparse(tmp_path):
    embedder = SentenceTransformer(str(write_embedder(tmp_path / "embedder")), device="cpu")
    return make_sparse_embedder(embedder, active_dims=4, auxiliary_dims=16)


def test_only_the_autoencoder_learns(sparse, tmp_path):
    codes = sparse.encode(TEXTS, convert_to_sparse_tensor=False)
    assert codes.shape == (16, 128)
    assert int((codes != 0).sum(1).max()) <= 4
    before = {name: p.detach().clone() for name, p in sparse.named_parameters()}
    trainer = SparseEncoderTrainer(
        model=sparse,
        args=SparseEncoderTrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=30, per_device_train_batch_size=8, use_cpu=True,
            learning_rate=1e-2, report_to="none", disable_tqdm=True, logging_steps=5, save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS}),
        loss=CSRLoss(sparse),
    )  # fmt: skip
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0]
    for name, parameter in sparse.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith(("0.", "1.")), name
    sparse.save_pretrained(str(tmp_path / "saved"))
    loaded = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    a, b = (model.encode(TEXTS, convert_to_sparse_tensor=False) for model in (sparse, loaded))
    assert torch.allclose(a, b, atol=1e-6)


def test_more_active_dimensions_than_there_are(tmp_path):
    embedder = SentenceTransformer(str(write_embedder(tmp_path / "embedder")), device="cpu")
    with pytest.raises(ElasticError, match="active_dims=500 must lie between 1 and the code's width, 128"):
        make_sparse_embedder(embedder, active_dims=500)
