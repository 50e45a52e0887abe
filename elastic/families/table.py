"""The README's table of what works, from what the families declare: ``python -m elastic.families.table README.md``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

from elastic.families import FAMILIES, Family

BEGIN = "<!-- families: written by python -m elastic.families.table README.md -->"
END = "<!-- end of families -->"

COLUMNS = (
    "model types",
    "FFN width",
    "heads",
    "hidden size",
    "layers, sub-layers",
    "stock loading of uniform subnets",
    "generate",
    "ONNX",
)


def support_table(families: Iterable[Family] = FAMILIES.values()) -> str:
    """Return a Markdown table; neighbours with the same row share it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for cells, group in itertools.groupby(families, key=_cells):
        names = ", ".join(_name(family) for family in group)
        lines.append("| " + " | ".join((names, *cells)) + " |")
    return "\n".join(lines)


def _name(family: Family) -> str:
    classes = f" ({', '.join(family.model_classes)})" if family.model_classes else ""
    return f"`{family.model_type}`{classes}"


def _cells(family: Family) -> tuple[str, ...]:
    return (
        "yes",
        _heads(family),
        "no" if family.hidden_fixed else "yes",
        "yes",
        _stock_loading(family),
        "yes, with cache" if family.generates else "",
        "yes, with cache" if family.generates else "yes",
    )


def _heads(family: Family) -> str:
    if family.heads_together:
        return "all or none"
    return "whole key-value groups" if family.kv_heads_field else "yes"


def _stock_loading(family: Family) -> str:
    limits = []
    if not family.config_has_ffn:
        limits.append("full FFN width")
    if family.ffn_is_ratio:
        limits.append("FFN widths that are multiples of the hidden size")
    if not family.config_has_head_dim:
        limits.append(_without_head_dim(family))
    if family.config_has_head_dim and family.heads_divide_hidden:
        limits.append("head counts that divide the hidden size")
    if family.first_layer_lacks:
        limits.append("the first layer kept")
    return ", ".join(limits) or "all"


def _without_head_dim(family: Family) -> str:
    if family.hidden_fixed:
        return "all heads"
    return "full hidden size" if family.heads_together else "as many heads as fill the hidden size"


def updated(readme: str) -> str:
    """Return the text with the present table between its two comments."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{support_table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text()))
