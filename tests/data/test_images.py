"""Labelled images from parquet files: real files, written here."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage

from elastic.data.images import images_task
from elastic.errors import RecipeError
from elastic.recipe import ImageData


def write(folder, split, sizes, channels=3):
    rng = np.random.default_rng(0)
    images = []
    for size in sizes:
        pixels = rng.integers(0, 256, (size, size, channels), dtype=np.uint8)
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "owl"])})
    data = {"image": images, "label": [i % 3 for i in range(len(sizes))]}
    Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}.parquet")


def section(folder, **changes):
    return ImageData(source="images", path=str(folder), **changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_tensors(tmp_path, channels):
    write(tmp_path, "train", [8] * 20, channels)
    write(tmp_path, "test", [8] * 5, channels)
    task = images_task(section(tmp_path, validation=0.2))
    assert {split: len(data) for split, data in task.datasets.items()} == {"train": 16, "validation": 4, "test": 5}
    assert task.model_config == {"num_labels": 3, "image_size": 8, "num_channels": channels}
    item = task.datasets["train"][0]
    assert item["pixel_values"].shape == (channels, 8, 8)
    assert item["pixel_values"].abs().max() <= 1
    assert torch.equal(item["pixel_values"], task.datasets["train"][0]["pixel_values"])


def test_only_training_images_are_mirrored(tmp_path):
    write(tmp_path, "train", [8] * 20)
    write(tmp_path, "validation", [8] * 5)
    task = images_task(section(tmp_path, flip=True))
    for split, different in (("train", True), ("validation", False)):
        seen = [task.datasets[split][0]["pixel_values"] for _ in range(20)]
        assert any(not torch.equal(seen[0], other) for other in seen) == different


def test_max_train(tmp_path):
    write(tmp_path, "train", [8] * 20)
    write(tmp_path, "validation", [8] * 5)
    assert len(images_task(section(tmp_path, max_train=7)).datasets["train"]) == 7


def test_data_that_does_not_fit(tmp_path):
    with pytest.raises(RecipeError, match=r"has no train.parquet, validation.parquet or test.parquet"):
        images_task(section(tmp_path))
    write(tmp_path, "test", [8] * 3)
    with pytest.raises(RecipeError, match="has no train examples"):
        images_task(section(tmp_path))
    write(tmp_path, "train", [8] * 9 + [9])
    with pytest.raises(RecipeError, match="has no column 'picture'; it has image, label"):
        images_task(section(tmp_path, image_column="picture"))
    data = images_task(section(tmp_path, validation=0.1)).datasets
    with pytest.raises(RecipeError, match="scale the images to one size first"):
        [item for split in ("train", "validation") for item in data[split]]
