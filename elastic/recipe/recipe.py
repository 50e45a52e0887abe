"""A recipe: which model is trained, on what, with which method. Read from YAML, with errors for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from elastic.errors import RecipeError, did_you_mean
from elastic.recipe.data import DATA_SECTIONS, DataSection
from elastic.recipe.read import read_yaml
from elastic.recipe.routers import RoutersSection
from elastic.recipe.section import Number, Section
from elastic.recipe.training import SAMPLER_SECTIONS, TrainingSection

_KINDS = {"data": ("source", DATA_SECTIONS), "sampler": ("name", SAMPLER_SECTIONS)}
"""Sections of several kinds: the key that says which, and what each kind holds."""


class ModelSection(Section):
    """The universal model: its architecture, and where its first weights come from."""

    family: str | None = Field(
        None,
        description="Architecture to build from scratch: a supported model type, such as vit, bert or llama.",
    )
    config: dict[str, Any] = Field({}, description="Configuration of that architecture, as in transformers.")
    pretrained: str | None = Field(
        None, description="Instead of `family`: a checkpoint folder or Hub name to start from."
    )


GranularityName = Annotated[str, Field(min_length=1)]


class Recipe(Section):
    """One complete run."""

    name: str = Field(description="Short name, used in reports.")
    description: str = ""
    source: str = Field("", description="The publication that the recipe follows.")
    task: Literal["image-classification", "causal-lm", "sentence-similarity"]
    model: ModelSection
    data: DataSection
    space: dict[str, list[Number]] = Field(
        {},
        description="Choices of each axis (ffn, heads, layers, attention, mlp, exit, hidden, embedding_dim), as "
        "fractions or whole numbers; by default that of a pretrained universal model.",
    )
    granularities: dict[GranularityName, dict[str, Number]] = Field(
        {}, description="Named uniform subnets, such as S: {ffn: 0.125}; axes left out are at their largest."
    )
    routers: RoutersSection | None = Field(
        None, description="Routers, which decide for each sequence what is computed; without it, none are trained."
    )
    training: TrainingSection = TrainingSection()
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Named changes, such as other data: keys with their sections (a.b) to values."
    )
    seed: int = Field(0, ge=0, lt=2**32)


def load_recipe(path: Path, overrides: Sequence[str] = (), *, variant: str | None = None) -> Recipe:
    """Read a recipe, with the changes of one of its variants, and ``a.b=value`` overrides after them.

    Raises:
        RecipeError: if the file is missing or not YAML, a key is unknown (suggests the right one), or a value is
            not allowed, or there is no such variant.
    """
    if not path.is_file():
        raise RecipeError(f"there is no recipe at {path}; the recipes that come with Elastic are in recipes/.")
    try:
        data = read_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is empty or not a mapping of keys to values; see recipes/ for examples.")
    if variant is not None:
        _vary(data, variant, str(path))
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, str(path))


def parse_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe's data; ``where`` names it in errors.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first_problem(error, data)}") from None


def _vary(data: dict[str, Any], variant: str, where: str) -> None:
    variants = data.get("variants")
    if not isinstance(variants, dict) or not isinstance(variants.get(variant), dict):
        known = variants if isinstance(variants, dict) else []
        raise RecipeError(f"{where} has no variant '{variant}'{did_you_mean(variant, known) if known else '.'}")
    for path, value in data.pop("variants")[variant].items():
        _put(data, path, value, f"{where}: variants.{variant}")


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: write it as key.subkey=value.")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: '{text}' is not a YAML value.") from None
    _put(data, path, value, f"--set {override}")


def _put(data: dict[str, Any], path: str, value: Any, where: str) -> None:
    *parents, last = path.split(".")
    for part in parents:
        child = data.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{where}: '{part}' is a value, not a section.")
        data = child
    data[last] = value


def _first_problem(error: ValidationError, data: Mapping[str, Any]) -> str:
    problems = error.errors()
    # An unknown key explains a missing one, so it is said first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # Pydantic puts the chosen kind of a section into the path, which is no key of the file.
    parts = [str(part) for part in problem["loc"]]
    location = [part for before, part in zip(["", *parts], parts, strict=False) if not _is_kind(before, part)]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{did_you_mean(location[-1], _known_keys(location[:-1], data))}"
    if problem["type"] == "missing":
        return f"the key '{where}' is missing."
    if problem["type"].startswith("union_tag"):
        key, kinds = _KINDS[location[-1]]
        given = problem["input"].get(key) if isinstance(problem["input"], Mapping) else None
        if given is None:
            return f"'{where}.{key}' must be one of {', '.join(kinds)}."
        return f"'{where}.{key}' is '{given}'{did_you_mean(str(given), kinds)}"
    return f"'{where}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _is_kind(section: str, part: str) -> bool:
    return section in _KINDS and part in _KINDS[section][1]


def _known_keys(path: Sequence[str], data: Any) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in path:
        data = data[int(part) if isinstance(data, list) else part]
        if part in _KINDS:
            key, kinds = _KINDS[part]
            section = kinds[str(data[key])]
        elif not part.isdigit():
            annotation = section.model_fields[part].annotation
            inner = get_args(annotation)[:1] or (annotation,)
            if not (inner and isinstance(inner[0], type) and issubclass(inner[0], BaseModel)):
                return []
            section = inner[0]
    return list(section.model_fields)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Elastic recipe", **schema}
