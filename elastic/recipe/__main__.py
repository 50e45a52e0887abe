"""Prints the JSON Schema of recipes."""

import json

from elastic.recipe import recipe_schema

print(json.dumps(recipe_schema(), indent=2))  # noqa: T201
