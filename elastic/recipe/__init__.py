"""Recipes: one YAML file says which model is trained, on what, with which method."""

from elastic.recipe.data import (
    DataSection,
    DigitsData,
    DocstringData,
    ImageData,
    SentencePairData,
    StdlibData,
    TextData,
)
from elastic.recipe.recipe import ModelSection, Recipe, load_recipe, parse_recipe, recipe_schema
from elastic.recipe.routers import RoutersSection
from elastic.recipe.section import Section
from elastic.recipe.training import ObjectiveSection, SamplerSection, StageSection, TrainingSection

__all__ = [
    "DataSection",
    "DigitsData",
    "DocstringData",
    "ImageData",
    "ModelSection",
    "ObjectiveSection",
    "Recipe",
    "RoutersSection",
    "SamplerSection",
    "Section",
    "SentencePairData",
    "StageSection",
    "StdlibData",
    "TextData",
    "TrainingSection",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
]
