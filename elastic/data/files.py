"""Datasets as users have them: a folder of parquet files, or a name on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elastic.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLITS = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
"""The names that the files of each split may have."""


def load_splits(path: str) -> DatasetDict:
    """Load a folder with {train,validation,test}.parquet, or a dataset of the Hub.

    Raises:
        RecipeError: if there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = {}
        for split, names in SPLITS.items():
            found = [folder / f"{name}.parquet" for name in names if (folder / f"{name}.parquet").is_file()]
            if found:
                files[split] = str(found[0])
        if not files:
            raise RecipeError(f"{folder} has no train.parquet, validation.parquet or test.parquet.")
        return _load_parquet(files)  # type: ignore[return-value]
    if folder.is_absolute() or path.startswith("."):
        raise RecipeError(f"there is no data folder {folder}.")
    from datasets import load_dataset

    try:
        return load_dataset(path)
    except Exception as error:
        raise RecipeError(f"'{path}' is neither a folder nor a dataset that the Hub gives: {error}") from None


def load_rows(path: str, columns: Sequence[str]) -> list[str]:
    """Load the texts of those columns that a parquet file has, or the lines of a text file.

    Raises:
        RecipeError: if the file is missing, or has none of the columns.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"there is no data file {file}.")
    if file.suffix != ".parquet":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise RecipeError(f"{file} is neither parquet nor UTF-8 text.") from None
        return [line.strip() for line in lines if line.strip()]
    data = load_table(file)
    found = [column for column in columns if column in data.column_names]
    if not found:
        raise RecipeError(f"{file} has no column '{columns[0]}'; it has {', '.join(data.column_names)}.")
    return [text for column in found for text in data[column]]


def load_table(file: Path) -> Dataset:
    """Load a parquet file.

    Raises:
        RecipeError: if it is missing, or none.
    """
    if not file.is_file():
        raise RecipeError(f"there is no data file {file}.")
    return _load_parquet(str(file), split="train")  # type: ignore[return-value]


def _load_parquet(files: str | dict[str, str], **options: str) -> Dataset | DatasetDict:
    from datasets import load_dataset  # takes a second to import, and the built-in data does without

    try:
        return load_dataset("parquet", data_files=files, **options)
    except Exception as error:
        names = files if isinstance(files, str) else ", ".join(files.values())
        raise RecipeError(f"{names} cannot be read as parquet: {str(error).splitlines()[0]}") from None
