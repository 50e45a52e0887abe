"""Recipes: those in the repository are whole, the schema is the published one, overrides and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from elastic.data import load_task
from elastic.errors import RecipeError
from elastic.nested import get_elastic
from elastic.pipeline.methods import (
    frozen_teacher,
    make_auto_encoding,
    make_embedding_loss,
    make_objective,
    make_sampler,
    make_weights,
)
from elastic.pipeline.models import build_model, resolve_granularities
from elastic.pipeline.training import training_arguments
from elastic.recipe import load_recipe, recipe_schema
from elastic.space import SearchSpace, check_subnet
from tests.embedder import write_embedder

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())


EMBEDDERS = ["matryoshka", "2dmse", "starbucks", "starbucks_smae", "universal_embedder"]
SCRATCH_OF = {"dynabert": "bignas", "llm_drop": "layerskip", "router_tuning": "matformer"}
"""Recipes that continue a trained model, with the recipe that trains one."""
NEED_DATA = {"distil_minilm_stsb"}
"""Recipes for data that no package brings; the benchmarks run them."""


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in NEED_DATA], ids=lambda path: path.stem)
def test_every_recipe_fits_its_data_and_model(path, tmp_path):
    small = ["data.max_bytes=200000"] if "source: stdlib" in path.read_text() else []
    if path.stem in EMBEDDERS:
        small = [f"model.pretrained={write_embedder(tmp_path / 'embedder', layers=6, hidden=384)}", "data.max_train=64"]
    if path.stem in SCRATCH_OF:
        start = load_recipe(path.with_stem(SCRATCH_OF[path.stem]), small)
        build_model(start, load_task(start)).save_pretrained(tmp_path / "start")
        small.append(f"model.pretrained={tmp_path / 'start'}")
    recipe = load_recipe(path, small)
    assert recipe.name == path.stem
    assert "arXiv" in recipe.source
    task = load_task(recipe)
    model = build_model(recipe, task)
    resolved = get_elastic(model).resolved
    granularities = resolve_granularities(recipe.granularities, get_elastic(model))
    assert resolved.largest in granularities.values()
    make_objective(recipe, has_teacher=frozen_teacher(recipe, model) is not None)
    make_auto_encoding(recipe, task)
    make_embedding_loss(recipe)
    make_weights(recipe, granularities)
    sampler = make_sampler(recipe, model, task, granularities)
    for step in range(5):
        for subnet in sampler(step, 0):
            check_subnet(subnet, resolved.dims)
    arguments = training_arguments(recipe, tmp_path)
    assert arguments.max_steps > 0 or arguments.num_train_epochs > 0


@pytest.mark.parametrize("path", [p for p in RECIPES if yaml.safe_load(p.read_text()).get("variants")],
                         ids=lambda path: path.stem)  # fmt: skip
def test_every_variant_is_a_recipe_whose_space_holds_its_granularities(path):
    for name in yaml.safe_load(path.read_text())["variants"]:
        recipe = load_recipe(path, variant=name)
        assert not recipe.variants
        space = SearchSpace.from_dict(recipe.space)
        for choices in recipe.granularities.values():
            assert all(choice in getattr(space, axis) for axis, choice in choices.items())


def test_a_variant_that_is_not_there():
    with pytest.raises(RecipeError, match="did you mean 'cifar10'"):
        load_recipe(ROOT / "recipes" / "matformer.yaml", variant="cifar")
    with pytest.raises(RecipeError, match="has no variant 'x'"):
        load_recipe(ROOT / "recipes" / "distil_minilm_stsb.yaml", variant="x")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_by_the_schema(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)


def test_the_schema_is_published():
    assert recipe_schema() == SCHEMA
    printed = subprocess.run([sys.executable, "-m", "elastic.recipe"], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == SCHEMA


def test_the_schema_refuses_a_typo():
    data = yaml.safe_load(RECIPES[0].read_text())
    data["training"]["smapler"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


def test_overrides_reach_into_sections_and_add_keys():
    recipe = load_recipe(RECIPES[0], ["training.arguments.max_steps=7", "seed=3", "training.arguments.bf16=true"])
    assert recipe.training.arguments["max_steps"] == 7
    assert recipe.training.arguments["bf16"] is True
    assert recipe.seed == 3


@pytest.mark.parametrize("override", ["seed", "=1", "seed.x=1", "seed=[1"])
def test_overrides_that_make_no_sense(override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(RECIPES[0], [override])


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("2E3", 2000.0), ("-1.5e+2", -150.0), (".5e1", 5.0)])
def test_numbers_without_a_point_are_numbers(text, value):
    recipe = load_recipe(ROOT / "recipes" / "matformer.yaml", [f"training.arguments.learning_rate={text}"])
    assert recipe.training.arguments["learning_rate"] == value
    assert load_recipe(ROOT / "recipes" / "matformer.yaml", ["description=1e-6x"]).description == "1e-6x"
