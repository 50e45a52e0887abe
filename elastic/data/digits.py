"""scikit-learn's handwritten digits: real images that every installation has."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from elastic.data.task import ACCURACY, Task
from elastic.recipe import DigitsData

PIXEL_MAX = 16.0


def digits_task(section: DigitsData) -> Task:
    """Return the 1,797 images, split at random but always alike for one seed."""
    digits = load_digits()
    order = np.random.default_rng(section.seed).permutation(len(digits.images))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / (PIXEL_MAX / 2) - 1.0
    labels = torch.tensor(digits.target, dtype=torch.int64)
    num_test, num_validation = round(section.test * len(order)), round(section.validation * len(order))
    splits = {
        "test": order[:num_test],
        "validation": order[num_test : num_test + num_validation],
        "train": order[num_test + num_validation :],
    }
    return Task(
        datasets={
            name: [{"pixel_values": images[i], "labels": labels[i]} for i in indices]
            for name, indices in splits.items()
        },
        metric=ACCURACY,
        model_config={"num_labels": 10, "image_size": 8, "num_channels": 1},
        input_shapes={"pixel_values": (1, 1, 8, 8)},
        preprocess={"pixels": "grey, 8x8", "scale": 2.0 / PIXEL_MAX, "offset": -1.0},
    )
