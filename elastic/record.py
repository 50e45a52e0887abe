"""``elastic.json`` of a checkpoint folder, read without torch: what a checkpoint is besides its weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from elastic.errors import CheckpointError
from elastic.space import ModelDims

FORMAT_VERSION = 1
RECORD_NAME = "elastic.json"


class CheckpointRecord(BaseModel):
    """``elastic.json``: what a checkpoint is besides its weights."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: Literal["universal", "extracted"]
    family: str
    elastic_version: str
    input_shapes: dict[str, list[int]]
    """For which every cost in this file was computed."""
    files: dict[str, str] = {}
    """Weight files with their sha256."""

    space: dict[str, list[int | float]] = {}
    drop_order: dict[str, list[int]] | None = None
    """In which order layers and sub-layers leave; evenly spaced ones stay without it."""
    routers: dict[str, Any] | None = None
    """Which sub-layers have routers; their weights are in ``routers.safetensors``."""
    ordering: dict[str, Any] | None = None
    """How neurons, heads, hidden dimensions and layers of a pretrained model were ordered."""
    granularities: dict[str, dict[str, int | float]] = {}
    recipe: dict[str, Any] | None = None
    """The resolved recipe: data, metric and training of the universal model."""
    training: dict[str, Any] = {}

    subnet: dict[str, Any] | None = None
    """Extracted: which subnet of the universal model this is."""
    universal_dims: ModelDims | None = None
    """Extracted: the sizes of the universal model."""
    cost: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None
    """Extracted: the options of an export in the precision that it was chosen for, and its quality in that."""
    test_quality: dict[str, Any] | None = None
    comparison: dict[str, dict[str, Any]] | None = None
    """Extracted: the universal model's largest subnet and the neighbours on the front, with cost and quality."""
    verification: dict[str, Any] | None = None
    correction: dict[str, Any] | None = None
    """Extracted: how the weights were adjusted after the cut, and the quality after that."""
    healing: dict[str, Any] | None = None
    """Extracted: how it was trained after the cut, and the quality before and after."""
    source: dict[str, str] | None = None
    """Extracted: name and weight hashes of the universal model."""


def read_record(folder: Path) -> CheckpointRecord:
    """Read ``elastic.json`` of a checkpoint folder.

    Raises:
        CheckpointError: if the folder or the file is missing, unreadable, or of a newer version.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name a checkpoint that `elastic train` wrote.")
    path = folder / RECORD_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECORD_NAME}, so it is not an Elastic checkpoint.")
    try:
        data = json.loads(path.read_text(), object_hook=_with_nan)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this Elastic reads up to {FORMAT_VERSION}; update Elastic."
        )
    try:
        return CheckpointRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{path} is not a record of Elastic: {where}: {first['msg']}.") from None


def is_universal(folder: Path) -> bool:
    """Whether a folder holds a universal model.

    Raises:
        CheckpointError: if its record cannot be read.
    """
    return (folder / RECORD_NAME).is_file() and read_record(folder).kind == "universal"


def _with_nan(data: dict[str, Any]) -> dict[str, Any]:
    """Give a quality that is no number its value back: JSON has null in its place."""
    return {**data, "value": math.nan} if "metric" in data and data.get("value", 0) is None else data
