"""Every checkpoint folder has a model card, which says what its record says."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from elastic.checkpoint import load
from elastic.cost import format_quantity
from elastic.pipeline.card import write_card
from elastic.record import read_record
from tests.cli.conftest import elastic

SUBNET = {"ffn": [16, 0], "heads": [4, 2]}


@pytest.fixture(scope="module")
def extracted(_trained, tmp_path_factory):
    """One whose layers differ, after a search that measured others."""
    folder = tmp_path_factory.mktemp("extracted") / "small"
    searched = elastic("search", _trained, "--flops", "60%")
    assert searched.code == 0, searched.err
    result = elastic("extract", _trained, "--subnet", json.dumps(SUBNET), "-o", folder)
    assert result.code == 0, result.err
    return folder


def rows(card):
    lines = [line.strip("| ").split(" | ") for line in card.content.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_of_a_universal_model(universal_dir):
    card = ModelCard.load(universal_dir / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["tags"] == ["elastic-transformers", "universal"]
    assert not {"license", "base_model"} & set(data)
    assert set(rows(card)) == {"XL", "S"}
    assert "Any transformers loads it." in card.text
    assert 'AutoModelForImageClassification.from_pretrained("universal")' in card.text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    assert recipe["name"] == "tiny"
    assert recipe["space"] == {"ffn": [0.25, 0.5, 1.0], "heads": [0.5, 1.0], "layers": [1, 2]}


def test_of_an_extracted_model(extracted):
    card, record = ModelCard.load(extracted / "README.md"), read_record(extracted)
    assert card.data.tags == ["elastic-transformers", "extracted", "custom_code"]
    assert f"```json\n{json.dumps(SUBNET)}\n```" in card.text
    found = rows(card)
    assert found["**this model**"][0] == format_quantity(record.cost["flops"])
    assert found["**this model**"][-1] == f"{record.quality['value']:.4g}"
    assert set(record.comparison) >= {"largest", "dearer"}
    flops = {role: other["cost"]["flops"] for role, other in record.comparison.items()}
    assert record.cost["flops"] < flops["dearer"] <= flops["largest"]
    assert flops.get("cheaper", 0) < record.cost["flops"]
    for other in record.comparison.values():
        (name,) = [name for name in found if name.endswith(other["subnet"])]
        assert found[name][-1] == f"{other['quality']['value']:.4g}"
    assert f"On test data, which chose nothing: accuracy {record.test_quality['value']:.4g}" in card.text
    assert 'AutoModelForImageClassification.from_pretrained("small", trust_remote_code=True)' in card.text


def test_its_command_makes_it_again(extracted, universal_dir, tmp_path):
    command = re.search(
        r"^elastic extract universal --subnet '(.*)' -o small$", (extracted / "README.md").read_text(), re.M
    )
    result = elastic("extract", universal_dir, "--subnet", command[1], "-o", tmp_path / "small")
    assert result.code == 0, result.err
    assert read_record(tmp_path / "small").files == read_record(extracted).files


def test_a_uniform_one_needs_no_code(universal_dir, tmp_path):
    result = elastic("extract", universal_dir, "--subnet", '{"ffn": [16, 16], "heads": [2, 2]}', "-o", tmp_path / "out")
    assert result.code == 0, result.err
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.tags == ["elastic-transformers", "extracted"]
    assert "trust_remote_code" not in card.text
    assert not (tmp_path / "out" / "modeling_elastic.py").exists()


def test_of_a_corrected_and_healed_one(universal_dir, recipe_file, tmp_path):
    arguments = ("--subnet", json.dumps(SUBNET), "--correct", "mean", "-o", tmp_path / "cut")
    assert elastic("extract", universal_dir, *arguments).code == 0
    found = rows(ModelCard.load(tmp_path / "cut" / "README.md"))
    record = read_record(tmp_path / "cut")
    assert found["**this model**"][-1] == f"{record.correction['quality']['value']:.4g}"
    assert found["**this model**, before correction"][-1] == f"{record.quality['value']:.4g}"
    result = elastic("heal", tmp_path / "cut", recipe_file, "--teacher", universal_dir, "-o", tmp_path / "healed",
                     "--set", "training.arguments.max_steps=4")  # fmt: skip
    assert result.code == 0, result.err
    card, record = ModelCard.load(tmp_path / "healed" / "README.md"), read_record(tmp_path / "healed")
    found = rows(card)
    assert found["**this model**"][-1] == f"{record.quality['value']:.4g}"
    assert found["**this model**, before healing"][-1] == f"{record.healing['before']['value']:.4g}"
    assert "After that `elastic heal`, with `universal` as teacher" in card.text
    assert (tmp_path / "healed" / "modeling_elastic.py").exists()


def test_a_card_that_is_there_stays(universal_copy):
    (universal_copy / "README.md").write_text("# Mine\n")
    write_card(universal_copy, "x", read_record(universal_copy), load(universal_copy))
    assert (universal_copy / "README.md").read_text() == "# Mine\n"


def test_names_on_the_hub_and_private_paths(universal_copy):
    record, model = read_record(universal_copy), load(universal_copy)

    def card(pretrained, **data):
        recipe = {**record.recipe, "model": {"pretrained": pretrained}, "data": {**record.recipe["data"], **data}}
        (universal_copy / "README.md").unlink(missing_ok=True)
        write_card(universal_copy, "x", record.model_copy(update={"recipe": recipe}), model)
        return ModelCard.load(universal_copy / "README.md")

    assert card("google/vit-base-patch16-224").data.base_model == "google/vit-base-patch16-224"
    private = card("/home/somebody/vit", path="/home/somebody/images")
    assert private.data.base_model is None
    assert "somebody" not in private.text
    assert "pretrained: vit" in private.text
