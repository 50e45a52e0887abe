"""Recipes: one YAML file says which model is trained, on what, with which method. Validated, with errors for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic.errors import RecipeError, did_you_mean

Number = int | float


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class DigitsData(Section):
    """Handwritten digits of scikit-learn: 1,797 grey images of 8x8 pixels, 10 classes."""

    source: Literal["digits"]
    seed: int = Field(0, description="Seed of the split into train, validation and test.")
    validation: float = Field(0.2, gt=0, lt=0.5, description="Share of the images held out for choosing.")
    test: float = Field(0.2, gt=0, lt=0.5, description="Share of the images that only the last evaluation sees.")


class StdlibData(Section):
    """Python's own standard library: the sources of the interpreter that runs this, for causal language models."""

    source: Literal["stdlib"]
    max_bytes: int = Field(4_000_000, ge=10_000, description="How much text to read, in bytes.")
    vocab_size: int = Field(2048, ge=300, description="Size of the byte-pair vocabulary trained on the train split.")
    sequence_length: int = Field(128, ge=8, description="Tokens of one training example.")


class ImageData(Section):
    """Images with labels, from parquet files or the Hub (column types as in `datasets`)."""

    source: Literal["images"]
    path: str = Field(description="Folder with {train,validation,test}.parquet, or the name of a Hub dataset.")
    image_column: str = "image"
    label_column: str = "label"
    mean: tuple[float, ...] = Field((0.5,), description="Subtracted from pixels in 0-1, one number or one a channel.")
    std: tuple[float, ...] = Field((0.5,), description="Divides after that.")
    flip: bool = Field(False, description="Mirror training images at random.")
    validation: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out where there is no validation.")
    max_train: int | None = Field(None, ge=1, description="Use only so many training examples.")
    seed: int = 0


class TextData(Section):
    """Plain text files for causal language models."""

    source: Literal["text"]
    paths: tuple[str, ...] = Field(min_length=1, description="Text files, read in this order.")
    tokenizer: str | None = Field(None, description="Tokenizer folder or Hub name; by default one is trained.")
    characters: bool = Field(False, description="One token a character instead of byte pairs.")
    vocab_size: int = Field(2048, ge=300)
    sequence_length: int = Field(128, ge=8)
    validation: float = Field(0.05, gt=0, lt=0.5, description="Share at the end held out for choosing.")
    test: float = Field(0.05, gt=0, lt=0.5, description="Share after that, which only the last evaluation sees.")


class SentencePairData(Section):
    """Pairs of sentences with their similarity, from parquet files or the Hub, for models that embed.

    Trained on is every sentence of the train pairs and of ``unlabelled``, without labels and without the sentences of
    the validation and test pairs; or, with ``labelled``, the train pairs and their scores. Judged by the rank
    correlation of cosine similarity and score.
    """

    source: Literal["sentence-pairs"]
    path: str = Field(description="Folder with {train,validation,test}.parquet, or the name of a Hub dataset.")
    sentence_columns: tuple[str, str] = ("sentence1", "sentence2")
    score_column: str = "score"
    labelled: bool = Field(False, description="Train on the pairs with their scores, not on single sentences.")
    unlabelled: tuple[str, ...] = Field((), description="More sentences: parquet files with these columns, or text.")
    max_train: int | None = Field(None, ge=1, description="Use only so many training sentences.")
    max_length: int | None = Field(None, ge=8, description="Longest input in tokens; by default the embedder's own.")


_DATA_SECTIONS: dict[str, type[BaseModel]] = {
    "digits": DigitsData,
    "stdlib": StdlibData,
    "images": ImageData,
    "text": TextData,
    "sentence-pairs": SentencePairData,
}
DataSection = Annotated[
    DigitsData | StdlibData | ImageData | TextData | SentencePairData, Field(discriminator="source")
]


class SamplerSection(Section):
    """Which subnets a step trains."""

    name: Literal["uniform", "joint", "sandwich"] = Field(
        "uniform",
        description="uniform: one granularity a step. joint: all of them every step. sandwich: the largest, the "
        "smallest and some random subnets of the space.",
    )
    num_random: int = Field(2, ge=0, description="sandwich: random subnets a step.")


class ObjectiveSection(Section):
    """What each subnet of a step learns from."""

    name: Literal["task", "distillation", "similarity"] = Field(
        "task",
        description="task: the labels. distillation: a teacher's logits. similarity: for embedders, which examples "
        "of a batch the teacher finds alike.",
    )
    teacher: Literal["largest", "original"] = Field(
        "largest",
        description="largest: the step's first subnet, as it learns. original: the model that training started from, "
        "frozen; it takes no labels.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Softens both distributions; by default 1, and 0.05 for similarity."
    )
    task_weight: float = Field(0.0, ge=0, le=1, description="distillation: share of the students' own task loss.")
    hidden_weight: float = Field(0.0, ge=0, description="Weight of the distance of hidden states to the teacher's.")


class TrainingSection(Section):
    """How long and how to train."""

    sampler: SamplerSection = SamplerSection()
    objective: ObjectiveSection = ObjectiveSection()
    arguments: dict[str, Any] = Field({}, description="`transformers.TrainingArguments`, by their names.")


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
        description="Choices of each axis (ffn, heads, layers, attention, mlp), as fractions or whole numbers; "
        "by default that of a pretrained universal model.",
    )
    granularities: dict[str, dict[str, Number]] = Field(
        {}, description="Named uniform subnets, such as S: {ffn: 0.125}; axes left out are at their largest."
    )
    training: TrainingSection = TrainingSection()
    seed: int = 0


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with ``a.b=value`` overrides.

    Raises:
        RecipeError: if the file is missing or not YAML, a key is unknown (suggests the right one), or a value is
            not allowed.
    """
    if not path.is_file():
        raise RecipeError(f"there is no recipe at {path}; the recipes that come with Elastic are in recipes/.")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is empty or not a mapping of keys to values; see recipes/ for examples.")
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


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: write it as key.subkey=value.")
    *parents, last = path.split(".")
    for part in parents:
        child = data.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override}: '{part}' is a value, not a section.")
        data = child
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: '{text}' is not a YAML value.") from None


def _first_problem(error: ValidationError, data: Mapping[str, Any]) -> str:
    problems = error.errors()
    # An unknown key explains a missing one, so it is said first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # Pydantic puts the chosen kind of data into the path, which is no key of the file.
    location = [str(part) for part in problem["loc"] if part not in _DATA_SECTIONS]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{did_you_mean(location[-1], _known_keys(location[:-1], data))}"
    if problem["type"] == "missing":
        return f"the key '{where}' is missing."
    if problem["type"].startswith("union_tag"):
        return f"'{where}.source' must be one of {', '.join(_DATA_SECTIONS)}."
    return f"'{where}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _known_keys(path: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in path:
        if part == "data":
            section = _DATA_SECTIONS.get(str(data["data"].get("source")), DigitsData)
            continue
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Elastic recipe", **schema}


if __name__ == "__main__":
    import json

    print(json.dumps(recipe_schema(), indent=2))  # noqa: T201
