"""Texts as inputs: one per line of a file, tokenised by the tokenizer of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .manifest import Manifest, check_files

Array = np.ndarray[Any, Any]

SUFFIX = ".txt"


def read_texts(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file that are not empty.

    Raises:
        BundleError: if the file is missing, is not text, or has no such line.
    """
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise BundleError(f"there is no file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"'{path}' is not a file of UTF-8 text: {error}.") from None
    if not texts:
        raise BundleError(f"'{path}' holds no text; write one text on each line.")
    return texts


def open_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """Return the ``tokenizers.Tokenizer`` of a bundle, which cuts texts to what the model takes.

    Raises:
        BundleError: if the bundle takes no texts, or the package tokenizers is not installed.
        VerificationError: if the tokenizer is not the exported one.
    """
    settings = (manifest.preprocess or {}).get("tokenizer")
    if not isinstance(settings, dict) or settings.get("file") not in manifest.files:
        raise BundleError(f"the bundle '{folder}' has no tokenizer; give its inputs as arrays (.npz).")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BundleError(
            "texts need the package tokenizers: `pip install tokenizers`; or give token ids as arrays (.npz)."
        ) from None
    name = settings["file"]
    check_files(folder, manifest, [name])
    tokenizer = Tokenizer.from_file(str(folder / name))
    if "sequence" in manifest.max_sizes:
        tokenizer.enable_truncation(manifest.max_sizes["sequence"])
    else:
        tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(folder: Path, manifest: Manifest, texts: Sequence[str]) -> dict[str, Array]:
    """Return ``input_ids`` and ``attention_mask``, padded to the longest text.

    Raises:
        BundleError: if the bundle takes no texts, or the package tokenizers is not installed.
        VerificationError: if the tokenizer is not the exported one.
    """
    tokenizer = open_tokenizer(folder, manifest)
    settings = (manifest.preprocess or {})["tokenizer"]
    lowered = [text.lower() for text in texts] if settings.get("lower_case") else list(texts)
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(lowered)]
    width = max(len(ids) for ids in encoded)
    pad_id = settings.get("pad_id", 0)
    return {
        "input_ids": np.array([ids + [pad_id] * (width - len(ids)) for ids in encoded], dtype=np.int64),
        "attention_mask": np.array([[1] * len(ids) + [0] * (width - len(ids)) for ids in encoded], dtype=np.int64),
    }
