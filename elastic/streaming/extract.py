"""Cuts a subnet out of the weight files of a universal checkpoint, without building either model."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

import elastic
from elastic.checkpoint import check_files, copy_companions, model_class_of, read_config
from elastic.cost import CostModel, InputShapes
from elastic.cuts import Cut, find_cuts
from elastic.data.embedder import cut_embedder, is_embedder
from elastic.errors import CheckpointError, ElasticError
from elastic.extraction import smaller_model
from elastic.families import Family, get_family
from elastic.folder import check_output
from elastic.nested import meta_model
from elastic.record import RECORD_NAME, CheckpointRecord, read_record
from elastic.space import Subnet, check_subnet
from elastic.streaming.source import Stored, find_tensors
from elastic.streaming.work import work_folder
from elastic.streaming.writer import Layout, make_header, write_file

OnProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all: written ones, and after them verified ones."""


@dataclass(frozen=True)
class Extraction:
    """What is read, cut and written; nothing of it is in memory but names and shapes."""

    folder: Path
    record: CheckpointRecord
    family: Family
    model: PreTrainedModel
    """The universal model, on the meta device."""
    small: PreTrainedModel
    """The extracted model, on the meta device."""
    subnet: Subnet
    stored: dict[str, Stored]
    """Where the universal model's tensors lie, by their names in the model."""
    cuts: dict[str, Cut]
    """What each tensor of the extracted model is, by its name in the model."""
    saved: dict[str, str]
    """The model's name of every tensor that is written, by the name under which it is saved."""
    files: dict[str, list[str]]
    """Which tensors each file holds, by the names under which they are saved."""

    def layout(self, file: str) -> Layout:
        """Return types and shapes of the tensors of a file."""
        tensors = self.small.state_dict()
        return {
            name: (tensors[self.saved[name]].dtype, tuple(tensors[self.saved[name]].shape)) for name in self.files[file]
        }

    def num_bytes(self, file: str) -> int:
        """Return the size of a file's tensors."""
        return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.layout(file).values())


def stream_extraction(
    folder: Path,
    subnet: Subnet,
    output: Path,
    *,
    input_shapes: InputShapes | None = None,
    max_shard_size: str | int = "5GB",
    on_progress: OnProgress = lambda done, total: None,
) -> CheckpointRecord:
    """Cut ``subnet`` out of a universal checkpoint into a checkpoint of its own, reading only the slices that stay.

    Writes the same weights as `elastic.extract`, file after file. The result is verified layer by layer against
    the universal model, on random hidden states; embeddings and heads must be equal bit by bit. An interrupted
    extraction continues with the files that it has finished. Quality is not measured.

    Args:
        folder: universal checkpoint.
        subnet: what is cut.
        output: folder to write; it must not exist.
        input_shapes: for which the cost is computed; as recorded by default.
        max_shard_size: largest file of weights, such as ``"5GB"``; a larger tensor has a file of its own.
        on_progress: called with bytes done and in all.

    Raises:
        CheckpointError: if ``folder`` is not a whole universal checkpoint.
        SpaceError: if the model cannot run the subnet.
        OutputError: if ``output`` cannot be written: a full disk, a read-only folder.
        OutputExistsError: if ``output`` exists.
        CheckError: if the result does not compute what the universal model does; nothing is written then.
    """
    from elastic.streaming.check import verify

    check_output(output)
    extraction = plan_extraction(folder, subnet, max_shard_size)
    shapes = input_shapes or {name: tuple(shape) for name, shape in extraction.record.input_shapes.items()}
    universal = extraction.model
    cost = CostModel(type(universal), universal.config, shapes, dtype=extraction.small.dtype).cost(subnet)
    sizes = {file: extraction.num_bytes(file) for file in extraction.files}
    total = 2 * sum(sizes.values())
    job = {
        "universal": extraction.record.files,
        "subnet": subnet.to_dict(),
        "files": {file: sha256(make_header(extraction.layout(file))[0]).hexdigest() for file in extraction.files},
    }
    with work_folder(output, job, sizes.__getitem__) as work:
        done = sum(sizes[file] for file in work.finished)

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            on_progress(done, total)

        for file in extraction.files:
            work.finish(file, lambda path, file=file: _write(extraction, file, path, count))  # type: ignore[misc]
        verification = verify(extraction, [work.checkpoint / file for file in extraction.files], count)
        record = CheckpointRecord(
            kind="extracted",
            family=extraction.record.family,
            elastic_version=elastic.__version__,
            input_shapes={name: list(shape) for name, shape in shapes.items()},
            files=dict(sorted(work.finished.items())),
            subnet=subnet.to_dict(),
            universal_dims=extraction.family.dims(extraction.model.config),
            cost=cost.to_dict(),
            verification=verification,
            ordering=extraction.record.ordering,
            recipe=extraction.record.recipe,
            source={"name": folder.resolve().name, **extraction.record.files},
        )
        _describe(extraction, work.checkpoint)
        _copy_parts(extraction, work.checkpoint)
        (work.checkpoint / RECORD_NAME).write_text(record.model_dump_json(indent=2) + "\n")
    return record


def plan_extraction(folder: Path, subnet: Subnet, max_shard_size: str | int) -> Extraction:
    """Find every tensor that is read, and lay out every file that is written.

    Raises:
        CheckpointError: if ``folder`` is not a whole universal checkpoint.
        SpaceError: if the model cannot run the subnet.
    """
    record = read_record(folder)
    if record.kind != "universal":
        raise CheckpointError(f"{folder} is an extracted model; name the universal model that it was cut from.")
    # Reading all of a large checkpoint to hash it would take longer than cutting it.
    check_files(folder, record, hashes=False)
    config = read_config(folder, record)
    family, model_class = get_family(config), model_class_of(folder, config)
    check_subnet(subnet, family.dims(config))
    model = meta_model(model_class, config)
    stored = find_tensors([folder / name for name in record.files], model)
    dtype = getattr(config, "dtype", None) or next(s.dtype for s in stored.values() if s.dtype.is_floating_point)
    with torch.device("meta"):
        small = smaller_model(model_class, config, subnet, dtype)
    small.generation_config = _generation_config(folder, model)  # type: ignore[assignment]
    saved = saved_names(small)
    tensors = small.state_dict()
    try:
        split = split_torch_state_dict_into_shards(
            {name: tensors[of] for name, of in saved.items()},
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError:
        raise ElasticError(f"'{max_shard_size}' is not a size of files; write it as 500MB or 5GB.") from None
    return Extraction(
        folder, record, family, model, small, subnet, stored, find_cuts(family, model, small, subnet),
        saved, {file: list(names) for file, names in split.filename_to_tensors.items()},
    )  # fmt: skip


def saved_names(model: PreTrainedModel) -> dict[str, str]:
    """Return under which name transformers saves each tensor of a model, with the model's own name of it.

    Raises:
        CheckpointError: if it converts a tensor when it saves it.
    """
    state = {name: t for name, t in model.state_dict().items() if name not in (model._keys_to_ignore_on_save or ())}
    state = remove_tied_weights_from_state_dict(state, model)
    names = {id(tensor): name for name, tensor in state.items()}
    saved = {name: names.get(id(tensor)) for name, tensor in revert_weight_conversion(model, state).items()}
    for name, of in saved.items():
        if of is None:
            raise CheckpointError(f"transformers converts '{name}' when it saves it; extract without streaming.")
    return saved  # type: ignore[return-value]


def _generation_config(folder: Path, model: PreTrainedModel) -> GenerationConfig | None:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return copy.deepcopy(getattr(model, "generation_config", None))


def _write(extraction: Extraction, file: str, path: Path, count: Callable[[int], None]) -> str:
    layout = extraction.layout(file)

    def read(name: str) -> Iterator[torch.Tensor]:
        cut = extraction.cuts[extraction.saved[name]]
        return extraction.stored[cut.source].chunks(cut, layout[name][0])

    return write_file(path, layout, read, count)


def _copy_parts(extraction: Extraction, folder: Path) -> None:
    copy_companions(extraction.folder, folder)
    if is_embedder(folder):
        cut_embedder(folder, extraction.subnet, extraction.family.dims(extraction.model.config))


def _describe(extraction: Extraction, folder: Path) -> None:
    """Write what `save_pretrained` writes beside the weights: configurations, and the index of several files."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as other:
        extraction.small.save_pretrained(other, state_dict={})
        for path in Path(other).iterdir():
            if ".safetensors" not in path.name:
                path.rename(folder / path.name)
    if len(extraction.files) > 1:
        index = {
            "metadata": {
                "total_parameters": extraction.small.num_parameters(),
                "total_size": sum(map(extraction.num_bytes, extraction.files)),
            },
            "weight_map": {name: file for file, names in extraction.files.items() for name in names},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)
