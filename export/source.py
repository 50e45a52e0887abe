"""Reads what is to be exported: a folder of Elastic, of transformers, or of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from elastic.checkpoint import load, model_class_of, unfit_weights
from elastic.data.embedder import EmbedderFolder, is_embedder, read_embedder
from elastic.errors import CheckpointError
from elastic.record import RECORD_NAME, read_record
from elastic.space import Subnet

from .decoder import DecoderInputs
from .embedder import Embedder, Exportable, body_of
from .inputs import DenseInputs, describe_inputs

TOKENIZER_NAME = "tokenizer.json"
_DATA_FILES = (TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Source:
    """A model, and what the manifest of its bundle says about it."""

    model: Exportable
    details: dict[str, Any] = field(default_factory=dict)
    """The keyword arguments of `export_onnx`."""


def read_source(folder: Path, *, embedding_dim: int | None = None) -> Source:
    """Load a model from a folder: extracted by Elastic, stock, or an embedder of either kind.

    Args:
        folder: the checkpoint.
        embedding_dim: how many leading dimensions an embedder's graph returns; by default those of the subnet, or all.

    Raises:
        CheckpointError: if the folder is no such checkpoint, is a universal model, or its weights do not fit.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name a checkpoint that is here.")
    record = read_record(folder) if (folder / RECORD_NAME).is_file() else None
    if record is not None and record.kind != "extracted":
        raise CheckpointError(
            f"{folder} is a universal model; cut a subnet first (elastic extract {folder} --flops 50%), or export "
            "several: --to family."
        )
    lower_case = False
    if is_embedder(folder):
        parts = read_embedder(folder)
        transformer = load(folder) if record else _load_stock(parts.transformer, AutoModel)
        dim = embedding_dim or (record.subnet or {}).get("embedding_dim") if record else embedding_dim
        model: Exportable = Embedder(transformer, parts.head, dim=dim, max_length=parts.max_length).eval()
        data_folder, lower_case = parts.transformer, parts.lower_case
    elif embedding_dim is not None:
        raise CheckpointError(f"{folder} is no embedder (it has no modules.json), so it has no embedding to shorten.")
    else:
        model, data_folder = load(folder) if record else _load_stock(folder), folder
    files = [data_folder / name for name in _DATA_FILES if (data_folder / name).is_file()]
    recorded = record.training.get("preprocess") if record else None
    preprocess = _describe_preprocessing(model, files, lower_case, recorded)
    details: dict[str, Any] = {"preprocess": preprocess, "extra_files": files}
    if record:
        quality = record.test_quality or record.quality
        details |= {"subnet": record.subnet, "cost": record.cost, "quality": quality}
    return Source(model, details)


@dataclass(frozen=True)
class FamilySource:
    """A universal model, what its subnets are exported in, and what the manifest of their bundle says."""

    model: PreTrainedModel
    details: dict[str, Any] = field(default_factory=dict)
    """The keyword arguments of `export_family`."""
    embedder: EmbedderFolder | None = None

    @property
    def whole(self) -> Exportable:
        """The universal model, in the embedder that it is part of."""
        if self.embedder is None:
            return self.model
        return Embedder(self.model, self.embedder.head, max_length=self.embedder.max_length).eval()

    def wrap(self, small: PreTrainedModel, subnet: Subnet) -> Exportable:
        """Return what is exported of an extracted subnet: itself, or the embedder that it becomes."""
        if self.embedder is None:
            return small
        head, limit = self.embedder.head, self.embedder.max_length
        return Embedder(small, head, dim=subnet.embedding_dim, max_length=limit).eval()


def read_universal(folder: Path, model: PreTrainedModel, preprocess: Mapping[str, Any] | None = None) -> FamilySource:
    """Read what lies around a universal model: tokenizer, and pooling if it is an embedder.

    Args:
        folder: the universal checkpoint.
        model: what was loaded from it.
        preprocess: how inputs are prepared, besides what the tokenizer does.

    Raises:
        CheckpointError: if its embedder has modules that cannot be loaded.
    """
    embedder = read_embedder(folder) if is_embedder(folder) else None
    data_folder = folder if embedder is None else embedder.transformer
    files = [data_folder / name for name in _DATA_FILES if (data_folder / name).is_file()]
    lower_case = embedder is not None and embedder.lower_case
    source = FamilySource(model, embedder=embedder)
    described = _describe_preprocessing(source.whole, files, lower_case, preprocess)
    return replace(source, details={"preprocess": described, "extra_files": files})


def _load_stock(folder: Path, auto_class: Any = None) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint of transformers.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "quantization_config", None):
            raise CheckpointError(f"{folder} holds quantized weights; export the full-precision checkpoint.")
        loaded: Any = (auto_class or model_class_of(folder, config)).from_pretrained(
            folder,
            config=config,
            dtype="float32",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, loading = loaded
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    if unfit := unfit_weights(loading):
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: '{unfit[0]}' is missing or of another size."
        )
    return model.eval()  # type: ignore[no-any-return]


def _describe_preprocessing(
    model: Exportable, files: list[Path], lower_case: bool, recorded: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return what the runtime needs to make inputs of texts, beside what training recorded."""
    described: dict[str, Any] = dict(recorded or {})
    inputs = describe_inputs(model)
    if not isinstance(inputs, DenseInputs) and any(file.name == TOKENIZER_NAME for file in files):
        described["tokenizer"] = {"file": TOKENIZER_NAME, "pad_id": inputs.pad_id, "lower_case": lower_case}
    if isinstance(inputs, DecoderInputs):
        settings = body_of(model).generation_config
        ends = settings.eos_token_id if settings is not None else None
        described["generation"] = {"eos_ids": [ends] if isinstance(ends, int) else list(ends or ())}
    return described or None
