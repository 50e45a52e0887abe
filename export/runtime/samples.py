"""Parity samples: inputs, and the outputs that PyTorch gave for them, in one ``.npz`` without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError


@dataclass(frozen=True)
class Sample:
    """One set of inputs with the outputs that are expected for it."""

    inputs: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    outputs: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples; each array is stored as ``<number>.inputs.<name>`` or ``<number>.outputs.<name>``."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for number, sample in enumerate(samples):
        arrays.update({f"{number}.inputs.{name}": array for name, array in sample.inputs.items()})
        arrays.update({f"{number}.outputs.{name}": array for name, array in sample.outputs.items()})
    save_arrays(path, arrays)


def read_samples(path: Path) -> list[Sample]:
    """Read what `write_samples` wrote.

    Raises:
        BundleError: if the file is not such a file.
    """
    samples: dict[int, Sample] = {}
    for key, array in load_arrays(path).items():
        number, _, rest = key.partition(".")
        side, _, name = rest.partition(".")
        if not number.isdecimal() or side not in ("inputs", "outputs") or not name:
            raise BundleError(f"{path} holds the array '{key}', which is not a parity sample.")
        getattr(samples.setdefault(int(number), Sample()), side)[name] = array
    if not samples:
        raise BundleError(f"{path} holds no parity samples.")
    return [samples[number] for number in sorted(samples)]


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write an ``.npz`` file that holds no pickle (`numpy.savez` takes that option only since NumPy 2.1)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an ``.npz`` file, or of an ``.npy`` file under the name ``""``; never a pickle.

    Raises:
        BundleError: if the file is missing or is not one of these.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise BundleError(f"there is no file '{path}'.") from None
    except Exception as error:  # A damaged archive can raise anything: zlib.error, NotImplementedError, MemoryError.
        raise BundleError(f"'{path}' is not a NumPy file of plain arrays (.npz or .npy): {error}.") from None
