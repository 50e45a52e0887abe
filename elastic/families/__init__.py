"""The architectures that Elastic knows: one short declarative file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic.errors import FamilyError
from elastic.families.bert import BERT
from elastic.families.family import Block, Family, Projection, Skip
from elastic.families.llama import LLAMA
from elastic.families.vit import VIT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = {family.model_type: family for family in (BERT, LLAMA, VIT)}

__all__ = ["FAMILIES", "Block", "Family", "Projection", "Skip", "get_family"]


def get_family(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration.

    Raises:
        FamilyError: if the architecture is unknown (lists the known ones) or uses a part that is not supported.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise FamilyError(
            f"models of type '{config.model_type}' are not supported; supported are {', '.join(sorted(FAMILIES))}."
        )
    for flag, meaning in (family.unsupported or {}).items():
        if getattr(config, flag, False):
            raise FamilyError(f"{meaning} ({flag}=True) is not supported for models of type '{config.model_type}'.")
    return family
