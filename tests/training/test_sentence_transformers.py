"""Elastic embedders in sentence-transformers: what encode returns, and training with its own losses."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from elastic.errors import ElasticError
from elastic.nested import active, get_elastic
from elastic.space import SearchSpace
from elastic.training import Joint
from elastic.training.sentence_transformers import ElasticSentenceTransformerTrainer, make_elastic_embedder
from tests.embedder import write_embedder, write_pairs

SPACE = SearchSpace(exit=[1, 2, 3], embedding_dim=[8, 16, 32])
TEXTS = ["the cat sits on the mat", "a red bird sings loudly"]


@pytest.fixture
def folder(tmp_path):
    return write_embedder(tmp_path / "embedder")


def load(folder):
    return make_elastic_embedder(SentenceTransformer(str(folder), device="cpu"), SPACE)


def test_an_embedder_keeps_its_embeddings_until_a_subnet_is_active(folder):
    stock, embedder = SentenceTransformer(str(folder), device="cpu"), load(folder)
    assert np.array_equal(stock.encode(TEXTS), embedder.encode(TEXTS))
    small = get_elastic(embedder).resolved.uniform(exit=2, embedding_dim=8)
    with active(embedder, small):
        embeddings = embedder.encode(TEXTS)
    assert embeddings.shape == (2, 8)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    stock[0].auto_model.encoder.layer = stock[0].auto_model.encoder.layer[:2]
    wanted = stock.encode(TEXTS)[:, :8]
    assert np.allclose(embeddings, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)


def test_any_loss_trains_every_subnet(folder, tmp_path):
    data = load_dataset("parquet", data_files=str(write_pairs(tmp_path / "pairs", folder) / "train.parquet"))["train"]
    embedder = load(folder)
    space = get_elastic(embedder).resolved
    subnets = [space.uniform(exit=1, embedding_dim=8), space.largest]

    def run(max_steps):
        trainer = ElasticSentenceTransformerTrainer(
            model=embedder,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(tmp_path / "out"), max_steps=max_steps, per_device_train_batch_size=8, use_cpu=True,
                learning_rate=1e-3, report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no",
            ),
            train_dataset=data,
            eval_dataset=data,
            loss=CoSENTLoss(embedder),
            sampler=Joint(subnets),
            granularities={"small": subnets[0]},
        )  # fmt: skip
        trainer.train()
        return trainer

    trainer = run(20)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(history[-5:]) < 0.9 * np.mean(history[:5])
    assert {"eval_small_loss", "eval_loss"} <= set(trainer.evaluate())


def test_a_checkpoint_of_the_trainer_loads(folder, tmp_path):
    embedder = load(folder)
    trainer = ElasticSentenceTransformerTrainer(
        model=embedder,
        args=SentenceTransformerTrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True),
        train_dataset=load_dataset("parquet", data_files=str(write_pairs(tmp_path / "p", folder) / "train.parquet"))[
            "train"
        ],
        loss=CoSENTLoss(embedder),
        sampler=Joint([get_elastic(embedder).resolved.largest]),
    )
    expected = embedder.encode(TEXTS)
    embedder.save_pretrained(str(tmp_path / "saved"))
    embedder[0].auto_model.encoder.layer[0].output.dense.weight.data.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "saved"))
    assert np.array_equal(embedder.encode(TEXTS), expected)


def test_a_model_without_transformer_is_refused():
    from sentence_transformers.sentence_transformer.modules import BoW

    with pytest.raises(ElasticError, match="holds no Transformer"):
        make_elastic_embedder(SentenceTransformer(modules=[BoW(vocab=["a"])], device="cpu"), SPACE)
