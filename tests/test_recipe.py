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
from elastic.pipeline.models import build_model, resolve_granularities
from elastic.pipeline.training import training_arguments
from elastic.recipe import load_recipe, recipe_schema

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())


NEED_DATA = {"distil_minilm_stsb"}
"""Recipes for data and models that no package brings; the benchmarks run them."""


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in NEED_DATA], ids=lambda path: path.stem)
def test_every_recipe_fits_its_data_and_model(path, tmp_path):
    small = ["data.max_bytes=200000"] if "stdlib" in path.stem else []
    recipe = load_recipe(path, small)
    assert recipe.name == path.stem
    assert "arXiv" in recipe.source
    model = build_model(recipe, load_task(recipe))
    granularities = resolve_granularities(recipe.granularities, get_elastic(model))
    assert list(granularities) == ["S", "M", "L", "XL"]
    assert granularities["XL"] == get_elastic(model).resolved.largest
    assert training_arguments(recipe, tmp_path).max_steps > 0


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
