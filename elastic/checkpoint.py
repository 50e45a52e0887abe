"""Checkpoint folders: an ordinary Transformers checkpoint plus ``elastic.json``, written whole or not at all."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from elastic import portable
from elastic.errors import CheckpointError
from elastic.extraction import take_layer_sizes
from elastic.families import get_family
from elastic.folder import sha256
from elastic.nested import Elastic, Routing, add_routers, get_elastic, make_elastic, read_routers, write_routers
from elastic.record import RECORD_NAME, CheckpointRecord, read_record
from elastic.space import DropOrder, SearchSpace, Subnet


def save_checkpoint(model: PreTrainedModel, record: CheckpointRecord, folder: Path) -> CheckpointRecord:
    """Write the model and its record into an existing, empty folder (see `elastic.folder.new_folder`).

    Returns:
        The record as written, with the files and their hashes.
    """
    model.save_pretrained(folder)
    routing = get_elastic(model).routing if record.kind == "universal" else None
    if routing is not None:
        write_routers(model, folder)
        record = record.model_copy(update={"routers": routing.to_dict()})
    weights = sorted(folder.glob("*.safetensors"))
    record = record.model_copy(update={"files": {path.name: sha256(path) for path in weights}})
    (folder / RECORD_NAME).write_text(record.model_dump_json(indent=2, exclude_defaults=False) + "\n")
    return record


def described_drop_order(elastic: Elastic) -> dict[str, list[int]] | None:
    """Return the drop order of a model as its record holds it."""
    order = elastic.resolved.drop_order
    return None if order is None else order.to_dict()


OPTIONAL_WEIGHTS = ("pooler.",)
"""What models without a head may lack: embedders do not use it."""


def unfit_weights(loading: Mapping[str, Any], head: tuple[str, ...] = ()) -> list[str]:
    """Return the weights that a stock checkpoint lacks, or has in another size than its configuration says.

    Args:
        loading: what ``from_pretrained`` said of it (``output_loading_info=True``).
        head: prefixes of what may be new.
    """
    missing = [name for name in loading["missing_keys"] if not name.startswith((*head, *OPTIONAL_WEIGHTS))]
    return sorted([*missing, *(name for name, *_ in loading["mismatched_keys"] if not name.startswith(head))])


_COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "spiece*",
    "preprocessor_config.json", "processor_config.json", "chat_template*",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[1-9]_*",
)  # fmt: skip
"""What may lie beside a model, and goes wherever it goes: tokenizers, processors, the parts of an embedder."""


def copy_companions(source: str | Path, folder: Path) -> None:
    """Copy tokenizer, processor and embedder files that ``folder`` does not have; a Hub name has none here."""
    source = Path(source)
    if not source.is_dir():
        return
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            target = folder / path.name
            if target.exists():
                continue
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)


def load(folder: str | Path, *, elastic: bool = True) -> PreTrainedModel:
    """Load an Elastic checkpoint: a universal model, elastic again, or an extracted one.

    Args:
        folder: the checkpoint.
        elastic: whether a universal model is made elastic again.

    Raises:
        CheckpointError: if a file is missing, truncated or not the one that was written.
        FamilyError: if the architecture is not supported.
    """
    folder = Path(folder)
    record = read_record(folder)
    check_files(folder, record)
    config = read_config(folder, record)
    model_class = model_class_of(folder, config)
    if record.kind == "universal":
        model = _from_pretrained(model_class, folder, config)
        if not elastic:
            return model
        order = None if record.drop_order is None else DropOrder.from_dict(record.drop_order)
        return with_routers(make_elastic(model, SearchSpace.from_dict(record.space), order), record, folder)
    if getattr(config, "layer_sizes", None):
        model_class = portable.model_class(model_class)
    return _from_pretrained(model_class, folder, config)


def with_routers(model: PreTrainedModel, record: CheckpointRecord, folder: Path) -> PreTrainedModel:
    """Give an elastic model the routers of a universal checkpoint, if it has some, and return it.

    Raises:
        CheckpointError: if their file is missing, or of other routers.
    """
    if record.routers is not None:
        read_routers(add_routers(model, Routing.from_dict(record.routers)), folder)
    return model


def check_files(folder: Path, record: CheckpointRecord, *, hashes: bool = True) -> None:
    """Check that all files of a checkpoint are there, and with ``hashes`` that they are those that were written.

    Raises:
        CheckpointError: if one is missing, outside of the folder, or another file.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; copy the whole checkpoint again.")
    if not record.files:
        raise CheckpointError(f"{folder / RECORD_NAME} lists no weight files; the checkpoint was not written whole.")
    for name, expected in record.files.items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{folder / RECORD_NAME} names the file '{name}', which is outside of its folder.")
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {name}, which {RECORD_NAME} lists; copy the whole checkpoint again."
            )
        if hashes and sha256(path) != expected:
            raise CheckpointError(
                f"{path} is not the file that {RECORD_NAME} describes (its sha256 differs): it was truncated or "
                "replaced; copy the whole checkpoint again."
            )


def read_config(folder: Path, record: CheckpointRecord) -> PreTrainedConfig:
    """Return the configuration of a checkpoint; where layers differ, one that says the sizes of each.

    Raises:
        CheckpointError: if it cannot be read, or belongs to another checkpoint.
    """
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
        stock = copy.deepcopy(data)
        layers_differ = take_layer_sizes(stock)
        config = AutoConfig.for_model(**stock)
        if layers_differ:
            config = _config_of_layers(folder, record, data, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if config.model_type != record.family:
        raise CheckpointError(
            f"{path} is of type '{config.model_type}', and {RECORD_NAME} of '{record.family}'; one of them belongs to "
            "another checkpoint."
        )
    return config


def _config_of_layers(
    folder: Path, record: CheckpointRecord, data: dict[str, Any], stock: PreTrainedConfig
) -> PreTrainedConfig:
    if record.subnet is None:
        raise CheckpointError(f"{folder / RECORD_NAME} does not say which subnet this is; extract it again.")
    family, subnet = get_family(stock), Subnet.from_dict(record.subnet)
    # Checkpoints that took no code along do not have it.
    table = portable.size_table(family, stock, subnet)
    config: Any = portable.config_class(type(stock))(**{"elastic": table, **data})
    if config.layer_sizes != portable.layer_sizes(family, stock, subnet):
        raise CheckpointError(
            f"{folder / 'config.json'} has other layers than the subnet in {RECORD_NAME}; one of them belongs to "
            "another checkpoint."
        )
    return config


def model_class_of(folder: Path, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the stock class that a configuration names.

    Raises:
        CheckpointError: if it names none, or one that transformers does not have.
    """
    names = config.architectures or []
    model_class = getattr(transformers, names[0], None) if names else None
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise CheckpointError(f"{folder / 'config.json'} names no model class of transformers in 'architectures'.")
    return model_class  # type: ignore[no-any-return]


def _from_pretrained(model_class: type[PreTrainedModel], folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        loaded: Any = model_class.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {error}") from None
    model, loading = loaded
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"]]
    if wrong:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing or foreign, such as "
            f"'{sorted(wrong)[0]}'."
        )
    return model.eval()  # type: ignore[no-any-return]
