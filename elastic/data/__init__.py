"""The data that recipes name: one file a source."""

from __future__ import annotations

from pathlib import Path

from elastic.data.calibration import Calibration, calibration_from_text, calibration_of
from elastic.data.embedder import cut_embedder
from elastic.data.task import Metric, Task, confidence_interval, fingerprint, measure, measure_items
from elastic.errors import RecipeError
from elastic.recipe import DigitsData, DocstringData, ImageData, Recipe, SentencePairData, StdlibData

__all__ = [
    "Calibration",
    "Metric",
    "Task",
    "calibration_from_text",
    "calibration_of",
    "confidence_interval",
    "cut_embedder",
    "fingerprint",
    "load_task",
    "measure",
    "measure_items",
]

_TASK_OF_SOURCE = {
    "digits": "image-classification",
    "images": "image-classification",
    "stdlib": "causal-lm",
    "text": "causal-lm",
    "docstrings": "sentence-similarity",
    "sentence-pairs": "sentence-similarity",
}


def load_task(recipe: Recipe, model_folder: Path | None = None) -> Task:
    """Load the data of a recipe.

    Args:
        recipe: whose data and task.
        model_folder: a checkpoint whose tokenizer is used instead of that of the recipe's pretrained model.

    Raises:
        RecipeError: if the data is missing, empty, or not of the recipe's task.
    """
    section = recipe.data
    if _TASK_OF_SOURCE[section.source] != recipe.task:
        raise RecipeError(
            f"data.source '{section.source}' is for the task {_TASK_OF_SOURCE[section.source]}, not {recipe.task}."
        )
    # Imported here: each source has its own library, and most runs need one of them.
    if isinstance(section, DigitsData):
        from elastic.data.digits import digits_task

        return digits_task(section)
    if isinstance(section, ImageData):
        from elastic.data.images import images_task

        return images_task(section)
    if isinstance(section, SentencePairData | DocstringData):
        embedder = model_folder or recipe.model.pretrained
        if embedder is None:
            raise RecipeError("the task 'sentence-similarity' needs model.pretrained: an embedder with its tokenizer.")
        from elastic.data.docstrings import docstrings_task
        from elastic.data.sentences import sentences_task

        if isinstance(section, DocstringData):
            return docstrings_task(section, str(embedder))
        return sentences_task(section, str(embedder))
    from elastic.data.text import stdlib_task, text_task

    return stdlib_task(section) if isinstance(section, StdlibData) else text_task(section)
