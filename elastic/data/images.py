"""Images with labels from parquet files or the Hub."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from elastic.data.files import load_splits
from elastic.data.task import ACCURACY, Task
from elastic.errors import RecipeError
from elastic.recipe import ImageData


def images_task(section: ImageData) -> Task:
    """Return a labelled image dataset, all images of one size.

    Raises:
        RecipeError: if the data or one of its columns is missing, or it has no examples.
    """
    raw = load_splits(section.path)
    if "train" not in raw or len(raw["train"]) == 0:
        raise RecipeError(f"the data at {section.path} has no train examples.")
    for column in (section.image_column, section.label_column):
        if column not in raw["train"].column_names:
            raise RecipeError(
                f"the data at {section.path} has no column '{column}'; it has {', '.join(raw['train'].column_names)}."
            )
    train = raw["train"].shuffle(seed=section.seed)
    if "validation" not in raw:
        num_held_out = round(section.validation * len(train))
        raw["validation"] = train.select(range(num_held_out))
        train = train.select(range(num_held_out, len(train)))
    raw["train"] = train.select(range(min(len(train), section.max_train or len(train))))
    first = np.asarray(raw["train"][0][section.image_column])
    channels = first.shape[2] if first.ndim == 3 else 1
    label = raw["train"].features[section.label_column]
    num_labels = label.num_classes if isinstance(label, ClassLabel) else 1 + max(raw["train"][section.label_column])
    shape = (channels, *first.shape[:2])
    return Task(
        datasets={
            split: _Images(data, section, shape, flip=section.flip and split == "train") for split, data in raw.items()
        },
        metric=ACCURACY,
        model_config={"num_labels": num_labels, "image_size": shape[1], "num_channels": channels},
        input_shapes={"pixel_values": (1, *shape)},
        preprocess={"pixels": "in 0-1", "mean": list(section.mean), "std": list(section.std)},
    )


class _Images(torch.utils.data.Dataset):
    """Decoded on first use and kept as bytes, so that each epoch after the first costs no decoding."""

    def __init__(self, data: Dataset, section: ImageData, shape: tuple[int, ...], *, flip: bool) -> None:
        self._data, self._section, self._flip = data, section, flip
        self._labels = data[section.label_column][:]  # a lazy column reads its table anew at every index
        self._pixels: dict[int, torch.Tensor] = {}
        self._shape = torch.Size(shape)
        self._mean = torch.tensor(section.mean).view(-1, 1, 1)
        self._std = torch.tensor(section.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._pixels:
            image = np.array(self._data[index][self._section.image_column])
            self._pixels[index] = torch.from_numpy(image if image.ndim == 3 else image[:, :, None]).permute(2, 0, 1)
        pixels = self._pixels[index]
        if pixels.shape != self._shape:
            raise RecipeError(
                f"image {index} is {tuple(pixels.shape)} (channels, height, width), others {tuple(self._shape)}; "
                "scale the images to one size first."
            )
        if self._flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return {
            "pixel_values": (pixels.float() / 255.0 - self._mean) / self._std,
            "labels": torch.tensor(self._labels[index]),
        }
