"""The model card of a checkpoint folder: what it is, its cost and quality, who can load it, how to make it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from elastic.cost import format_quantity
from elastic.data.embedder import is_embedder
from elastic.portable import CODE_NAME, auto_class_of
from elastic.record import CheckpointRecord
from elastic.selection import Measured
from elastic.space import Subnet

CARD_NAME = "README.md"
TAG = "elastic-transformers"
_PIPELINE_TAGS = {
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def write_card(
    folder: Path, name: str, record: CheckpointRecord, model: PreTrainedModel, points: Sequence[Measured] = ()
) -> None:
    """Write ``README.md`` into a checkpoint folder that has all its other files; one that is there stays.

    Args:
        folder: of the checkpoint.
        name: of the checkpoint, as it stands in the title.
        record: its ``elastic.json``.
        model: the model, for the class that loads it.
        points: of a universal model, subnets that have been measured.
    """
    path = folder / CARD_NAME
    if path.exists():
        return
    embeds, has_code = is_embedder(folder), (folder / CODE_NAME).is_file()
    auto_class = auto_class_of(model)
    data = ModelCardData(
        library_name="sentence-transformers" if embeds else "transformers",
        pipeline_tag="sentence-similarity" if embeds else _PIPELINE_TAGS.get(auto_class),
        base_model=_base_model(record),
        tags=[TAG, record.kind, *(["custom_code"] if has_code else [])],
    )
    parts = [
        f"---\n{data.to_yaml().strip()}\n---",
        f"# {name}",
        _what(record),
        *_section("Quality and cost", _numbers(record, points)),
        *_section("Load it", _loading(name, record, auto_class, embeds=embeds, has_code=has_code)),
        *_section("Make it again", _making(name, record)),
    ]
    ModelCard("\n\n".join(parts) + "\n").save(path)


def _section(title: str, parts: Iterable[str]) -> list[str]:
    return [f"## {title}", *(part for part in parts if part)]


def _base_model(record: CheckpointRecord) -> str | None:
    """Return the pretrained model that this one comes from, if it has a name on the Hub."""
    started_from = ((record.recipe or {}).get("model") or {}).get("pretrained")
    source = (record.ordering or {}).get("source") or started_from
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not Path(source).exists():
        return source
    return None


def _what(record: CheckpointRecord) -> str:
    if record.kind == "universal":
        axes = ", ".join(f"{axis} {_choices(choices)}" for axis, choices in record.space.items())
        return (
            f"A universal model of type `{record.family}`: its weights hold many smaller models, each a prefix "
            f"of them. Elastic axes: {axes or 'none'}. As it stands here, it runs its largest subnet."
        )
    assert record.subnet is not None and record.source is not None
    subnet = Subnet.from_dict(record.subnet)
    return (
        f"A model of type `{record.family}`, cut out of the universal model `{record.source['name']}`: "
        f"{subnet.describe()}.\n\n```json\n{json.dumps(record.subnet)}\n```\n\nEach list has one number for each "
        "layer of the universal model; 0 is a sub-layer that was left out, and a layer without both is gone."
    )


def _choices(choices: Sequence[int | float]) -> str:
    return "[" + ", ".join(f"{choice:g}" for choice in choices) + "]"


def _numbers(record: CheckpointRecord, points: Sequence[Measured]) -> list[str]:
    shapes = ", ".join(f"`{name}` {'x'.join(map(str, shape))}" for name, shape in record.input_shapes.items())
    counted = (
        f"Costs are of one forward pass with {shapes}: FLOPs as `torch.utils.flop_counter` counts (2 per "
        "multiply-add), memory of weights and activations."
    )
    if record.kind == "universal":
        rows = [_row(p.name or p.subnet.describe(), p.cost.to_dict(), p.quality.to_dict()) for p in points]
        return [_table(rows), counted if rows else ""]
    rows = [_row(f"**this model**{after}", record.cost, quality) for after, quality in _stages(record)]
    titles = {
        "largest": "universal model, largest subnet",
        "cheaper": "next cheaper on the front",
        "dearer": "next dearer on the front",
    }
    for role, other in (record.comparison or {}).items():
        rows.append(_row(f"{titles[role]}: {other['subnet']}", other["cost"], other["quality"]))
    return [
        _table(rows),
        counted,
        "" if not record.comparison else "The front: of all subnets that were measured, those that none beats in both.",
        _on_test_data(record),
        _in_precision(record),
        _verification(record),
    ]


def _stages(record: CheckpointRecord) -> list[tuple[str, Mapping[str, Any] | None]]:
    """Return the quality of an extracted model after each step that changed its weights, the last without a word."""
    if record.healing:
        return [("", record.quality), (", before healing", record.healing["before"])]
    if record.correction:
        return [("", record.correction["quality"]), (", before correction", record.quality)]
    return [("", record.quality)]


def _row(name: str, cost: Mapping[str, Any] | None, quality: Mapping[str, Any] | None) -> dict[str, str]:
    row = {"": name}
    if cost:
        row["FLOPs"] = format_quantity(cost["flops"])
        row["parameters"] = format_quantity(cost["params"])
        row["memory"] = f"{cost['memory_bytes'] / 2**20:.3g} MiB"
    if quality:
        row[f"{quality['metric']} ({quality['split']}, {quality['num_examples']})"] = f"{quality['value']:.4g}"
    return row


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _on_test_data(record: CheckpointRecord) -> str:
    if not record.test_quality:
        return ""
    test = record.test_quality
    return f"On test data, which chose nothing: {test['metric']} {test['value']:.4g} ({test['num_examples']} examples)."


def _in_precision(record: CheckpointRecord) -> str:
    if not record.precision:
        return ""
    precision, quality = record.precision["precision"], record.precision.get("quality")
    measured = f" There its {quality['metric']} is {quality['value']:.4g} ({quality['split']})." if quality else ""
    return f"It was chosen to be exported in {precision}, which is what `elastic export` does with it.{measured}"


def _verification(record: CheckpointRecord) -> str:
    if not record.verification:
        return ""
    return (
        f"Compared with the universal model running this subnet, its outputs as cut differ by at most "
        f"{record.verification['max_abs_diff']:.1e}."
    )


def _loading(name: str, record: CheckpointRecord, auto_class: str, *, embeds: bool, has_code: bool) -> list[str]:
    trust = ", trust_remote_code=True" if has_code else ""
    code = (
        f"Its layers differ, which no stock class of transformers can say. `{CODE_NAME}`, beside the weights, can: "
        "it needs torch and transformers only. Without `trust_remote_code=True`, loading fails; it never gives a wrong "
        "model."
    )
    lines = [f"from transformers import {auto_class}", f'model = {auto_class}.from_pretrained("{name}"{trust})']
    if embeds:
        lines += [
            "",
            "# or, with its tokenizer and its pooling:",
            "from sentence_transformers import SentenceTransformer",
        ]
        lines += [f'model = SentenceTransformer("{name}"{trust})']
    universal = record.kind == "universal"
    what = "with its space, so that it runs any subnet" if universal else "with its files checked, and no remote code"
    lines += ["", f"# or {what}:", f"import elastic  # pip install {TAG}", f'model = elastic.load("{name}")']
    return [
        code if has_code else "Any transformers loads it.",
        "```python\n" + "\n".join(lines) + "\n```",
        f"`{name}` is this folder, wherever it lies.",
    ]


def _making(name: str, record: CheckpointRecord) -> list[str]:
    version = f"elastic-transformers {record.elastic_version}"
    recipe = "" if record.recipe is None else _details("The universal model's recipe", _yaml(record.recipe))
    if record.kind == "universal":
        return [f"With {version}:", _shell(_universal_command(name, record)), recipe]
    assert record.source is not None
    correct = f" --correct {record.correction['method']}" if record.correction else ""
    command = f"elastic extract {record.source['name']} --subnet '{json.dumps(record.subnet)}'{correct} -o {name}"
    healing = ""
    if record.healing:
        healing = (
            f"After that `elastic heal`, with `{record.healing['teacher']}` as teacher: {record.healing['steps']} "
            f"steps, of which the best on validation data was {record.healing['best_step']}."
        )
    return [f"With {version}, from the universal model:", _shell(command), healing, recipe]


def _universal_command(name: str, record: CheckpointRecord) -> str:
    if record.training or record.ordering is None:
        return f"elastic train recipe.yaml -o {name}"
    ordering = record.ordering
    recipe = "" if record.recipe is None else " --recipe recipe.yaml"
    return (
        f"elastic convert {_shared(ordering['source'])} --space '{json.dumps(record.space)}'{recipe} "
        f"--order {ordering['units'] or 'none'} --depth {ordering['depth'] or 'even'} -o {name}"
    )


def _shell(command: str) -> str:
    return f"```\n{command}\n```"


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>"


def _yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(_shared(_without_empty(recipe)), sort_keys=False, default_flow_style=None, width=120)


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: _without_empty(part) for key, part in value.items()}
    return {key: part for key, part in kept.items() if part not in (None, "", [], {})}


def _shared(value: Any) -> Any:
    """Return what a stranger may see: of absolute paths the last part alone."""
    if isinstance(value, dict):
        return {key: _shared(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shared(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
