"""Pretrained models become universal, are trained on with the original as teacher, cut, corrected and healed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, T5Config

import elastic as library
from elastic.data import calibration_from_text
from elastic.extraction import largest_difference, sample_inputs
from elastic.nested import active, get_elastic
from elastic.pipeline import Universal
from elastic.pipeline.conversion import one_shot_subnets
from elastic.record import read_record
from tests.cli.conftest import elastic
from tests.cli.test_bad_input import refused
from tests.embedder import write_embedder, write_pairs
from tests.tiny import tiny_llama, tiny_vit

RECIPE = {
    "name": "tiny",
    "task": "sentence-similarity",
    "space": {"ffn": [0.25, 0.5, 1.0], "layers": [1, 2, 3]},
    "granularities": {"full": {}, "narrow": {"ffn": 0.25}, "shallow": {"layers": 1}},
    "training": {
        "sampler": {"name": "joint"},
        "objective": {"name": "similarity", "teacher": "original", "hidden_weight": 1.0},
        "arguments": {
            "num_train_epochs": 6,
            "per_device_train_batch_size": 16,
            "learning_rate": 2.0e-3,
            "eval_strategy": "no",
            "use_cpu": True,
            "dataloader_pin_memory": False,
        },
    },
}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return write_embedder(tmp_path_factory.mktemp("embedder") / "embedder")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, embedder):
    folder = tmp_path_factory.mktemp("sts")
    data = {"source": "sentence-pairs", "path": str(write_pairs(folder / "pairs", embedder))}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "model": {"pretrained": str(embedder)}, "data": data}))
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory, embedder, recipe):
    folder = tmp_path_factory.mktemp("converted") / "universal"
    result = elastic(
        "convert", embedder, "--recipe", recipe, "--num-calibration", 64, "--correct", "least_squares", "-o", folder
    )
    assert result.code == 0, result.err
    return folder, result


def test_plan_and_table(converted):
    _, result = converted
    assert "BertModel, bert" in result.out
    assert "39 subnets" not in result.out
    assert "leave by cosine" in result.out
    assert "spearman (validation, 40)" in result.out
    assert "corrected" in result.out
    assert "narrow: 3/3 layers, ffn 16, heads 4" in result.out


def test_the_table_is_remembered(converted):
    folder, result = converted
    subnets = ("full", "narrow", "shallow", "smallest")
    assert result.err.count("Measuring ") == len(subnets)
    assert f"Measuring {len(subnets)} of {len(subnets)}: 1/3 layers, ffn 16, heads 4" in result.err
    universal = Universal.open(folder)
    known = dict(universal.measured.items())
    assert set(known) == {*universal.granularities.values(), universal.elastic.resolved.smallest}
    narrow = universal.granularities["narrow"]
    assert known[narrow] == universal._measure(narrow, "validation")


def test_without_names_each_axis_is_shrunk_alone(converted):
    space = get_elastic(library.load(converted[0])).resolved
    table = one_shot_subnets(space)
    assert table[0] == space.largest and table[-1] == space.smallest
    assert set(table[1:-1]) == {
        space.uniform(**{axis: n}) for axis, n in (("ffn", 32), ("ffn", 16), ("layers", 2), ("layers", 1))
    }


def test_what_is_corrected_is_measured_as_long_as_the_subnet_embeds(embedder, recipe, tmp_path, monkeypatch):
    """A correction that changes nothing must not change the quality either."""
    monkeypatch.setattr("elastic.pipeline.conversion.correct", lambda *arguments, **options: None)
    space = ("--space", "{embedding_dim: [4, 1.0], ffn: [0.25, 1.0], layers: [1, 3]}", "--order", "magnitude")
    options = ("--recipe", recipe, "--num-calibration", 8, "--correct", "mean")
    result = elastic("convert", embedder, *space, *options, "-o", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    found = [point for point in result.json["one_shot"] if point["subnet"].get("embedding_dim") == 4]
    assert found
    for point in found:
        assert point["corrected"] == pytest.approx(point["quality"]["value"], abs=1e-3)


def test_a_dry_run_writes_nothing(embedder, recipe, tmp_path):
    result = elastic("convert", embedder, "--recipe", recipe, "-o", tmp_path / "out", "--dry-run", "--json")
    assert result.json["plan"]["ffn"] == "16, 32, 64"
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_stock_configurations_refuse(tmp_path, embedder):
    space = ("--space", "{heads: [0.5, 1.0], ffn: [0.5, 1.0]}")
    plan = elastic("convert", embedder, *space, "-o", tmp_path / "out", "--dry-run", "--json").json["plan"]
    assert plan["stock loading"] == "every uniform subnet but heads 2 (elastic.load reads those)"
    assert "layer order" not in plan
    tiny_vit().save_pretrained(tmp_path / "vit")
    plan = elastic("convert", tmp_path / "vit", *space, "-o", tmp_path / "out", "--dry-run", "--json").json["plan"]
    assert plan["stock loading"] == "every uniform subnet"


def test_the_converted_embedder_is_the_original(converted, embedder):
    folder, _ = converted
    sentences = ["the old cat sits", "a quick bird sings near the red house"]
    expected = SentenceTransformer(str(embedder), device="cpu").encode(sentences)
    actual = SentenceTransformer(str(folder), device="cpu").encode(sentences)
    assert np.abs(expected - actual).max() <= 1e-5
    assert not torch.equal(
        AutoModel.from_pretrained(folder).encoder.layer[0].intermediate.dense.weight,
        AutoModel.from_pretrained(embedder).encoder.layer[0].intermediate.dense.weight,
    )


def test_the_record_says_how_it_was_ordered(converted, embedder):
    record = read_record(converted[0])
    assert record.ordering["units"] == "activation"
    assert record.ordering["depth"] == "cosine"
    assert record.ordering["calibration"] == {"source": "the recipe's training data", "examples": 64}
    order = get_elastic(library.load(converted[0])).resolved.drop_order
    assert order.to_dict() == record.drop_order


def distance_to_full(folder, original):
    """How far the small subnets' streams are from what the original computes."""
    model, teacher = library.load(folder), library.load(original)
    inputs = {"input_ids": torch.randint(4, 20, (16, 8), generator=torch.Generator().manual_seed(0))}
    distance = 0.0
    with torch.no_grad():
        wanted = teacher(**inputs).last_hidden_state.mean(1)
        for choices in ({"ffn": 16}, {"layers": 1}):
            with active(model, get_elastic(model).resolved.uniform(**choices)):
                distance += float((model(**inputs).last_hidden_state.mean(1) - wanted).square().mean())
    return distance


def test_trained_by_the_original_then_cut_and_healed(converted, recipe, tmp_path):
    folder, _ = converted
    model = ["--set", f"model.pretrained={folder}"]
    before = distance_to_full(folder, folder)
    result = elastic("train", recipe, *model, "-o", tmp_path / "universal")
    assert result.code == 0, result.err
    assert "shallow_spearman" in result.out
    assert distance_to_full(tmp_path / "universal", folder) < 0.6 * before
    record = read_record(tmp_path / "universal")
    assert record.ordering == read_record(folder).ordering
    assert record.drop_order == read_record(folder).drop_order

    cut = elastic("extract", tmp_path / "universal", "--flops", "50%", "--uniform", "-o", tmp_path / "half", "--json")
    assert cut.code == 0, cut.err
    embeddings = SentenceTransformer(str(tmp_path / "half"), device="cpu").encode(["the old cat sits"])
    assert embeddings.shape == (1, 32)
    assert np.linalg.norm(embeddings) == pytest.approx(1.0, abs=1e-5)

    healed = elastic("heal", tmp_path / "half", recipe, *model, "-o", tmp_path / "healed", "--json")
    assert healed.code == 0, healed.err
    assert healed.json["quality"]["value"] >= healed.json["before"]["value"]
    assert healed.json["before"]["value"] == pytest.approx(cut.json["quality"]["value"], abs=1e-3)
    loaded = library.load(tmp_path / "healed")
    assert loaded.num_parameters() == library.load(tmp_path / "half").num_parameters()
    assert not list((tmp_path / "healed").glob("checkpoint*"))


def test_healing_a_model_whose_layers_differ(converted, recipe, tmp_path):
    folder, _ = converted
    subnet = '{"ffn": [16, 0, 64], "heads": [4, 0, 4]}'
    assert elastic("extract", folder, "--subnet", subnet, "-o", tmp_path / "cut").code == 0
    result = elastic("heal", tmp_path / "cut", recipe, "--teacher", folder, "-o", tmp_path / "healed", "--json")
    assert result.code == 0, (result.err, result.exception)
    assert result.json["quality"]["value"] > result.json["before"]["value"]
    assert library.load(tmp_path / "healed").num_parameters() == library.load(tmp_path / "cut").num_parameters()


def test_extract_with_correction(converted, tmp_path):
    subnet = '{"ffn": [16, 16, 16], "heads": [4, 4, 4]}'
    result = elastic(
        "extract", converted[0], "--subnet", subnet, "--correct", "least_squares", "-o", tmp_path / "cut", "--json"
    )
    assert result.code == 0, result.err
    assert result.json["correction"]["method"] == "least_squares"
    assert result.json["correction"]["quality"]["value"] != result.json["quality"]["value"]
    assert result.json["verification"]["max_abs_diff"] <= 1e-5
    plain = elastic("extract", converted[0], "--subnet", subnet, "-o", tmp_path / "plain", "--json")
    assert plain.json["quality"] == result.json["quality"]


def test_continued_with_another_space(converted, recipe, tmp_path):
    changes = [f"model.pretrained={converted[0]}", "space={ffn: [0.5, 1.0]}", "granularities={}",
               "training.arguments.max_steps=1"]  # fmt: skip
    overrides = [part for change in changes for part in ("--set", change)]
    result = elastic("train", recipe, *overrides, "-o", tmp_path / "other")
    assert result.code == 0, result.err
    assert read_record(tmp_path / "other").space == {"ffn": [0.5, 1.0]}


def test_without_data_by_magnitude(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    result = elastic("convert", tmp_path / "vit", "--space", "{ffn: [0.5, 1.0], heads: [0.5, 1.0], layers: [2, 3]}",
                     "-o", tmp_path / "universal", "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["one_shot"] == []
    assert result.json["plan"]["ordering"] == "magnitude"
    described = elastic("info", tmp_path / "universal")
    assert described.code == 0, described.err
    assert "units ordered by magnitude" in described.err
    unmeasured = elastic("search", tmp_path / "universal", "--flops", "90%")
    refused(unmeasured, "names no data", "--recipe")
    stock, universal = tiny_vit(), library.load(tmp_path / "universal")
    inputs = sample_inputs(stock.config, batch=2)
    with torch.no_grad():
        assert largest_difference(stock(**inputs).logits, universal(**inputs).logits) <= 1e-5


def test_a_head_for_other_labels_is_refused(tmp_path, recipe_file):
    """The tiny model tells 5 classes apart, and the digits have 10: a random head would fill the table with noise."""
    tiny_vit().save_pretrained(tmp_path / "vit")
    result = elastic("convert", tmp_path / "vit", "--recipe", recipe_file, "-o", tmp_path / "universal")
    refused(result, "has no trained head for this data", "classifier.bias")


@pytest.mark.parametrize("order", ["activation", "first_order", "pivoted_qr", "reconstruction"])
def test_a_decoder_calibrated_on_text(tmp_path, embedder, order):
    from transformers import AutoTokenizer

    tiny_llama().save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(embedder).save_pretrained(tmp_path / "llama")
    (tmp_path / "text.txt").write_text("the old cat sits\n\na quick bird sings near the red house\n" * 8)
    result = elastic("convert", tmp_path / "llama", "--space", "{ffn: [0.25, 1.0], heads: [2, 4], attention: [2, 3]}",
                     "--calibration", tmp_path / "text.txt", "--order", order, "-o", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    record = read_record(tmp_path / "out")
    assert record.ordering["calibration"]["examples"] == 16
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    model = library.load(tmp_path / "out")
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(model.generate(prompt, **settings), tiny_llama().generate(prompt, **settings))


# Bad input


@pytest.fixture
def vit(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


SPACE = ("--space", "{ffn: [0.5, 1.0]}")


def test_unknown_family(tmp_path):
    T5Config(architectures=["T5Model"]).save_pretrained(tmp_path / "t5")
    refused(elastic("convert", tmp_path / "t5", *SPACE, "-o", tmp_path / "out"), "models of type 't5'", "bert, ")


def test_missing_model(tmp_path):
    refused(elastic("convert", tmp_path / "none", *SPACE, "-o", tmp_path / "out"), "there is no folder", "none")


def test_shapes_that_contradict_the_configuration(vit, tmp_path):
    config = json.loads((vit / "config.json").read_text())
    config["intermediate_size"] = 96
    (vit / "config.json").write_text(json.dumps(config))
    result = elastic("convert", vit, *SPACE, "-o", tmp_path / "out")
    refused(result, "do not fit its configuration", "fc1")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers(vit, tmp_path):
    model = tiny_vit()
    with torch.no_grad():
        model.vit.layers[1].mlp.fc2.weight[0, 0] = float("nan")
    model.save_pretrained(vit)
    refused(elastic("convert", vit, *SPACE, "-o", tmp_path / "out"), "layers.1.mlp.fc2.weight", "NaN")


def test_quantized_checkpoints(vit, tmp_path):
    config = json.loads((vit / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (vit / "config.json").write_text(json.dumps(config))
    refused(elastic("convert", vit, *SPACE, "-o", tmp_path / "out"), "quantized", "full-precision")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_calibration_without_rows(embedder, tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    result = elastic("convert", embedder, *SPACE, "--calibration", tmp_path / "empty.txt", "-o", tmp_path / "out")
    refused(result, "no usable rows")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_calibration_on_pairs(embedder, tmp_path, kind):
    """Both sentences count, in either of Arrow's types for text, and no other column."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    pairs = {"sentence1": ["the cat sits"] * 3, "sentence2": ["a dog"] * 3}
    large = pa.table({name: pa.array(texts, pa.large_string()) for name, texts in pairs.items()})
    pq.write_table(large.append_column("genre", pa.array(["news"] * 3)), folder / "train.parquet")
    where = folder if kind == "folder" else folder / "train.parquet"
    data = calibration_from_text(str(where), str(embedder), 100)
    assert sorted({len(example["input_ids"]) for example in data.examples}) == [4, 5]
    assert len(data) == 6
    result = elastic("convert", embedder, *SPACE, "--calibration", where, "-o", tmp_path / "out")
    assert result.code == 0, result.err


def test_calibration_that_cannot_be_read(embedder, tmp_path):
    (tmp_path / "no.parquet").write_text("not parquet")
    for name, part in (("lines.txt", "there is no data file"), ("pairs.parquet", "there is no data file"),
                       ("no.parquet", "cannot be read as parquet"), (".", "has no train.parquet")):  # fmt: skip
        result = elastic("convert", embedder, *SPACE, "--calibration", tmp_path / name, "-o", tmp_path / "out")
        refused(result, part)


def test_calibration_without_text(embedder, tmp_path):
    Dataset.from_dict({"score": [1.0, 2.0]}).to_parquet(str(tmp_path / "numbers.parquet"))
    result = elastic("convert", embedder, *SPACE, "--calibration", tmp_path / "numbers.parquet", "-o", tmp_path / "out")
    refused(result, "none of its columns is text", "score")


def test_calibration_that_is_not_there(embedder, tmp_path):
    result = elastic("convert", embedder, *SPACE, "--calibration", tmp_path / "no.txt", "-o", tmp_path / "out")
    refused(result, "there is no data file")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["no space is given"]),
        (("--space", "nowhere.yaml"), ["there is no space file nowhere.yaml"]),
        (("--space", "{fnn: [0.5]}"), ["unknown axis 'fnn'", "did you mean 'ffn'?"]),
        (("--space", "{ffn: 3"), ["is not a space"]),
        ((*SPACE, "--order", "activations"), ["--order activations", "did you mean 'activation'?"]),
        ((*SPACE, "--depth", "cosin"), ["did you mean 'cosine'?"]),
        ((*SPACE, "--correct", "means", "--recipe", "x"), ["did you mean 'mean'?"]),
        ((*SPACE, "--order", "activation"), ["'activation' needs calibration data"]),
        ((*SPACE, "--correct", "mean"), ["--correct measures quality"]),
    ],
)
def test_options_that_make_no_sense(vit, tmp_path, arguments, parts):
    refused(elastic("convert", vit, *arguments, "-o", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_elastic_models_are_not_converted_again(converted, tmp_path):
    result = elastic("convert", converted[0], *SPACE, "-o", tmp_path / "out")
    refused(result, "a universal model of Elastic already")


def test_nothing_is_overwritten(vit, tmp_path):
    (tmp_path / "out").mkdir()
    refused(elastic("convert", vit, *SPACE, "-o", tmp_path / "out"), "exists already")


def test_healing_refusals(converted, recipe, tmp_path, monkeypatch):
    refused(elastic("heal", converted[0], recipe, "-o", tmp_path / "out"), "is a universal model", "elastic train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(elastic("heal", converted[0], recipe, "-o", tmp_path / "out"), "runs in one process")


def test_no_held_out_sentence_is_trained_on(recipe, embedder, tmp_path):
    from elastic.data.sentences import sentences_task
    from elastic.recipe import load_recipe

    section = load_recipe(recipe).data
    folder = shutil.copytree(section.path, tmp_path / "pairs")
    shutil.copy(folder / "test.parquet", tmp_path / "more.parquet")
    plain = sentences_task(section, str(embedder))
    leaky = sentences_task(section.model_copy(update={"unlabelled": (str(tmp_path / "more.parquet"),)}), str(embedder))
    assert len(leaky.datasets["train"]) == len(plain.datasets["train"])
