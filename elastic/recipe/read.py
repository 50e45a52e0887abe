"""YAML as people write it: ``1e-4`` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-4`` for text, because it has no point; YAML 1.2 and everybody else take it for a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Return what YAML text says; only plain data, no objects.

    Raises:
        yaml.YAMLError: if it is not YAML.
    """
    return yaml.load(text, _Loader)
