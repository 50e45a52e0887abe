from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from elastic.export import ExportReport, export_onnx, read_source
from tests.embedder import write_embedder
from tests.tiny import MODELS


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return a function that exports a model once, and gives it with its report."""
    folder, done = tmp_path_factory.mktemp("bundles"), {}

    def get(name: str) -> tuple[PreTrainedModel, ExportReport]:
        if name not in done:
            model = MODELS[name]()
            extra = folder / f"{name}-tokenizer.json"
            extra.write_text('{"made": "up"}')
            done[name] = (
                model,
                export_onnx(
                    model,
                    folder / name,
                    subnet={"ffn": [64, 32, 64], "heads": [4, 2, 4]},
                    cost={"flops": 1000, "batch": 1},
                    quality={"accuracy": 0.5},
                    preprocess={"mean": [0.5]},
                    extra_files=[extra],
                ),
            )
        return done[name]

    return get


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    """A stock embedder's folder, not to be changed."""
    return write_embedder(tmp_path_factory.mktemp("embedder") / "embedder")


@pytest.fixture(scope="session")
def exported_embedder(embedder, tmp_path_factory) -> ExportReport:
    """The report of its export; the bundle is not to be changed."""
    source = read_source(embedder)
    return export_onnx(source.model, tmp_path_factory.mktemp("bundles") / "embedder", **source.details)


@pytest.fixture
def bundle_copy(exported, tmp_path):
    """Return a function that gives a copy of a bundle to damage."""

    def get(name: str = "vit") -> Path:
        return Path(shutil.copytree(exported(name)[1].bundle_dir, tmp_path / name))

    return get
