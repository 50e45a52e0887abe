"""The model of a recipe: built from scratch, loaded from a pretrained checkpoint, or continued from a universal one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from elastic.checkpoint import load, unfit_weights, with_routers
from elastic.data import Task
from elastic.errors import CheckpointError, ElasticError, RecipeError, did_you_mean
from elastic.families import FAMILIES, get_family
from elastic.nested import Elastic, get_elastic, make_elastic
from elastic.ordering import check_finite
from elastic.pipeline.embedder import check_head
from elastic.recipe import ModelSection, Recipe
from elastic.record import RECORD_NAME, read_record
from elastic.space import SearchSpace, Subnet

AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "causal-lm": AutoModelForCausalLM,
    "sentence-similarity": AutoModel,
}


def build_model(recipe: Recipe, task: Task) -> PreTrainedModel:
    """Build or load the model of a recipe, and make it elastic.

    Raises:
        RecipeError: if neither or both of ``family`` and ``pretrained`` are given, or a configuration key is unknown.
        FamilyError: if the architecture is not supported.
        SpaceError: if the space does not fit the model.
    """
    section = recipe.model
    if (section.family is None) == (section.pretrained is None):
        raise RecipeError("the recipe's model section needs either 'family' or 'pretrained'.")
    if section.pretrained is not None and (Path(section.pretrained) / RECORD_NAME).is_file():
        return _continue(Path(section.pretrained), recipe)
    if not recipe.space:
        raise RecipeError("the recipe has no space; say which axes are elastic, such as space: {ffn: [0.5, 1.0]}.")
    auto_class = AUTO_CLASSES[recipe.task]
    if section.pretrained is not None:
        model = load_pretrained(auto_class, section.pretrained, section.config, task)
    else:
        model = _from_scratch(auto_class, section, task)
    model = make_elastic(model, SearchSpace.from_dict(recipe.space))
    check_head(section.pretrained, get_elastic(model).resolved)
    return model


def _from_scratch(auto_class: Any, section: ModelSection, task: Task) -> PreTrainedModel:
    if section.family not in FAMILIES:
        raise RecipeError(f"model.family is '{section.family}'{did_you_mean(str(section.family), FAMILIES)}")
    known = {*AutoConfig.for_model(section.family).to_dict(), "head_dim", "attn_implementation"}
    for key in section.config:
        if key not in known:
            raise RecipeError(f"unknown key 'model.config.{key}'{did_you_mean(key, known)}")
    try:
        config = AutoConfig.for_model(section.family, **{**task.model_config, **section.config})
        return auto_class.from_config(config)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.config is not one of a {section.family} model: {error}") from None
    except Exception as error:
        if type(error).__module__.startswith("huggingface_hub"):
            raise RecipeError(f"model.config is not one of a {section.family} model: {error}") from None
        raise


def _continue(folder: Path, recipe: Recipe) -> PreTrainedModel:
    """Load a universal model to train it on, in its own space unless the recipe has another."""
    record = read_record(folder)
    if record.kind != "universal":
        raise RecipeError(f"{folder} is an extracted model; train it with `elastic heal`.")
    if recipe.model.config:
        raise RecipeError("model.config cannot change a universal model; leave it out.")
    model = load(folder)
    if not recipe.space:
        return model
    drop_order = get_elastic(model).resolved.drop_order
    model = make_elastic(load(folder, elastic=False), SearchSpace.from_dict(recipe.space), drop_order)
    return with_routers(model, record, folder)


def check_supported(config: PreTrainedConfig, name: str) -> None:
    """Check that a pretrained model can become elastic, before its weights are loaded.

    Raises:
        FamilyError: if its architecture is not supported.
        CheckpointError: if it is quantized.
    """
    get_family(config)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"the model '{name}' is quantized, and slices of quantized weights are no smaller model; name the "
            "full-precision checkpoint that it was made from."
        )


def load_pretrained(
    auto_class: Any, name: str, changes: Mapping[str, Any], task: Task | None, *, new_head: bool = True
) -> PreTrainedModel:
    """Load a model that was trained before; only its head may be new, for other labels, if ``new_head``.

    Raises:
        RecipeError: if it cannot be loaded, or its weights do not fit its configuration or the data.
        FamilyError: if its architecture is not supported.
        CheckpointError: if it is quantized.
        ElasticError: if a weight is not a number (names the tensor).
    """
    try:
        check_supported(AutoConfig.from_pretrained(name), name)
    except (OSError, ValueError) as error:
        if isinstance(error, ElasticError):
            raise
        raise RecipeError(f"the model '{name}' cannot be loaded: {error}") from None
    wanted = {} if task is None else task.model_config
    labels = {key: wanted[key] for key in ("num_labels",) if key in wanted}
    try:
        model, loading = auto_class.from_pretrained(
            name, **{**labels, **changes}, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"the model '{name}' cannot be loaded: {error}") from None
    if unfit := unfit_weights(loading, _head_names(model)):
        raise RecipeError(
            f"the weights of '{name}' do not fit its configuration: '{unfit[0]}' is missing or of another size."
        )
    if not new_head and (made_up := unfit_weights(loading)):
        raise RecipeError(
            f"the model '{name}' has no trained head for this data ('{made_up[0]}' is missing or of another size); "
            "train it on the data first, or name it in a recipe for `elastic train`."
        )
    for key in ("image_size", "num_channels"):
        taken, given = getattr(model.config, key, None), wanted.get(key)
        if given is not None and given != taken:
            raise RecipeError(f"the images have {key} {given}, and the model '{name}' takes {taken}.")
    if wanted.get("vocab_size", 0) > getattr(model.config, "vocab_size", 0):
        raise RecipeError(
            f"the tokenizer has {wanted['vocab_size']} tokens, and the model '{name}' takes "
            f"{model.config.vocab_size}; name its own tokenizer in data.tokenizer."
        )
    check_finite(model)
    return model  # type: ignore[no-any-return]


def _head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Prefixes of what lies outside of the pretrained body; nothing where the model is the body."""
    body = model.base_model_prefix
    if not hasattr(model, body):
        return ()
    return tuple(f"{name}." for name, _ in model.named_children() if name != body)


def resolve_granularities(granularities: Mapping[str, Mapping[str, int | float]], info: Elastic) -> dict[str, Subnet]:
    """Return the named subnets of a recipe or a record; where it names none, the smallest and the largest."""
    if not granularities:
        return {"smallest": info.resolved.smallest, "largest": info.resolved.largest}
    return {name: info.resolved.granularity(choices) for name, choices in granularities.items()}
