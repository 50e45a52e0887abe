"""Functions of the Python standard library with their docstrings, for models that embed."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator

from elastic.data.sentences import Pair, pairs_task
from elastic.data.stdlib import library_sources
from elastic.data.task import Task
from elastic.recipe import DocstringData

MIN_WORDS = 4


def docstrings_task(section: DocstringData, model_name: str) -> Task:
    """Return pairs of a function, as its name and parameters say it, and the first sentence of a docstring; or texts.

    Every function makes two pairs: with its own docstring (score 1), and with another one of the same file (score 0).
    Whole files are held out (see `elastic.data.stdlib`). Without labels, both are trained on one by one.
    """
    pairs: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    rng = random.Random(section.seed)
    for split, source in library_sources():
        found = list(_documented(source))
        if len({sentence for _, sentence in found}) < 2:
            continue
        for function, sentence in found:
            other = rng.choice([text for _, text in found if text != sentence])
            pairs[split] += [(function, sentence, 1.0), (function, other, 0.0)]
    rng.shuffle(pairs["train"])
    if not section.labelled:
        texts = list(dict.fromkeys(text for first, second, _ in pairs.pop("train") for text in (first, second)))
        return pairs_task(pairs, model_name, section.max_length, sentences=texts[: section.max_train])
    pairs["train"] = pairs["train"][: section.max_train]
    return pairs_task(pairs, model_name, section.max_length)


def _documented(source: str) -> Iterator[tuple[str, str]]:
    """Yield ``("parse header text", "Return the header of a message.")`` for each documented function."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()).partition(". ")[0]
        if len(sentence.split()) >= MIN_WORDS:
            names = [node.name, *(argument.arg for argument in node.args.args if argument.arg not in ("self", "cls"))]
            yield " ".join(" ".join(names).replace("_", " ").split()), sentence
