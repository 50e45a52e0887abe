"""Runs a bundle on arrays, or texts, from a file."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .generate import generate, pad_left, with_cache
from .manifest import PAST, PRESENT, Manifest
from .members import Session
from .samples import load_arrays, save_arrays
from .session import Bundle
from .texts import SUFFIX, open_tokenizer, read_texts, tokenize

BATCH = 32
"""Texts that run together."""


@dataclass(frozen=True)
class RunReport:
    """What was run, and where the outputs are."""

    bundle: str
    sizes: dict[str, int]
    outputs: dict[str, list[int]]
    """The shape of every output."""
    output_file: str
    texts: tuple[str, ...] = ()
    """What was generated, where texts were given."""
    subnet: str | None = None
    """Which one ran, of a bundle that has several."""


def run(
    folder: Path,
    input_file: Path,
    output_file: Path,
    *,
    threads: int | None = None,
    max_new_tokens: int | None = None,
    subnet: str | None = None,
    deadline_ms: float | None = None,
    backend: str | None = None,
) -> RunReport:
    """Run a bundle on the arrays of an ``.npz`` file (or one ``.npy``: its first input), and write an ``.npz`` file.

    A ``.txt`` file holds one text on each line.

    Integers and floats are converted where nothing is lost; a missing ``attention_mask`` means that
    nothing is padded, and without cached keys and values nothing is cached. With ``max_new_tokens``, a decoder
    continues the inputs; the new tokens are written as ``generated_ids``.

    A bundle with several subnets runs ``subnet``, by default the largest. With ``deadline_ms``, all are measured on the
    inputs (of many texts, on the first batch), and the best one that meets the deadline runs.

    Raises:
        BundleError: if the inputs do not fit, or the output file is there already.
    """
    if output_file.suffix != ".npz":
        raise BundleError(f"outputs are written as .npz, not as '{output_file.name}'.")
    if os.path.lexists(output_file):
        raise BundleError(f"'{output_file}' is there already; choose another output file.")
    session = Session.open(folder, threads=threads, backend=backend)
    texts = input_file.suffix == SUFFIX
    arrays = tokenize(folder, session.manifest, read_texts(input_file)) if texts else load_arrays(input_file)
    if deadline_ms is not None:
        subnet = _in_time(session, arrays, deadline_ms, subnet, max_new_tokens)
    bundle = session.bundle(subnet)
    inputs = with_cache(bundle.manifest, prepare_inputs(bundle.manifest, arrays))
    sizes = bundle.sizes(_rows(inputs, 0, bundle.batch_limit) if max_new_tokens is None else inputs)
    generated: tuple[str, ...] = ()
    if max_new_tokens is not None:
        new = _continue(bundle, inputs, max_new_tokens)
        outputs = {"generated_ids": new}
        if texts:
            generated = tuple(open_tokenizer(folder, bundle.manifest).decode_batch(new.tolist()))
    else:
        outputs = _run_texts(bundle, inputs) if texts else _run_in_parts(bundle, inputs)
        if not any(name.startswith(f"{PAST}.") for name in arrays):
            outputs = {name: array for name, array in outputs.items() if not name.startswith(f"{PRESENT}.")}
    _write(output_file, outputs)
    return RunReport(
        bundle=str(folder),
        sizes=sizes,
        outputs={name: list(array.shape) for name, array in outputs.items()},
        output_file=str(output_file),
        texts=generated,
        subnet=subnet or session.names[0],
    )


def _in_time(
    session: Session,
    arrays: dict[str, np.ndarray[Any, Any]],
    deadline_ms: float,
    subnet: str | None,
    max_new_tokens: int | None,
) -> str | None:
    if subnet is not None or max_new_tokens is not None:
        raise BundleError("a deadline is for one call, and chooses the subnet; leave the subnet and new tokens out.")
    inputs = {name: array[:BATCH] for name, array in prepare_inputs(session.manifest, arrays).items()}
    session.warm_up(inputs)
    return session.choose(inputs, deadline_ms)


def _continue(bundle: Bundle, inputs: dict[str, np.ndarray[Any, Any]], max_new_tokens: int) -> np.ndarray[Any, Any]:
    settings = (bundle.manifest.preprocess or {}).get("generation") or {}
    if "input_ids" not in inputs:
        raise BundleError(f"the bundle '{bundle.folder}' takes no text, so it cannot generate.")
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ids, mask = pad_left([row[kept == 1].tolist() for row, kept in rows])
    return generate(bundle, ids, mask, max_new_tokens=max_new_tokens, eos_ids=settings.get("eos_ids", ()))


def prepare_inputs(manifest: Manifest, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Give arrays the names and types that the graph takes, where that loses nothing."""
    arrays = {name or manifest.inputs[0].name: array for name, array in arrays.items()}
    has_mask = any(spec.name == "attention_mask" for spec in manifest.inputs)
    if has_mask and "attention_mask" not in arrays and "input_ids" in arrays:
        arrays["attention_mask"] = np.ones_like(arrays["input_ids"])
    for spec in manifest.inputs:
        array = arrays.get(spec.name)
        if array is not None and np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
            arrays[spec.name] = array.astype(spec.dtype)
    return arrays


def _run_texts(bundle: Bundle, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Run texts of about the same length together, and give the outputs in the order of the texts."""
    lengths = inputs["attention_mask"].sum(axis=1)
    if any(spec.has_sequence for spec in bundle.manifest.outputs):
        return _run_in_parts(bundle, inputs)  # Outputs of different lengths are no array.
    order = np.argsort(-lengths, kind="stable")
    parts = []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        width = int(lengths[rows].max())
        parts.append(_run_in_parts(bundle, {name: array[rows, :width] for name, array in inputs.items()}))
    back = np.argsort(order)
    return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}


def _run_in_parts(bundle: Bundle, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Run as many rows at once as the bundle takes."""
    count, limit = len(next(iter(inputs.values()))), bundle.batch_limit
    if limit is None:
        return bundle.run(inputs)
    parts = [bundle.run(_rows(inputs, start, limit)) for start in range(0, count, limit)]
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _rows(inputs: dict[str, np.ndarray[Any, Any]], start: int, limit: int | None) -> dict[str, np.ndarray[Any, Any]]:
    """Return so many rows; where there are fewer, the first one is repeated."""
    if limit is None:
        return inputs
    count = len(next(iter(inputs.values())))
    rows = [row if row < count else start for row in range(start, start + limit)]
    return {name: array[rows] for name, array in inputs.items()}


def _write(path: Path, outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
            save_arrays(Path(beside, path.name), outputs)
            Path(beside, path.name).replace(path)
    except OSError as error:
        raise BundleError(f"'{path}' cannot be written: {error.strerror or error}.") from None
