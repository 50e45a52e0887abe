"""``--phase`` and ``--context``: costs of decoders with their key-value cache."""

from __future__ import annotations

import copy

import pytest

import elastic as library
from elastic.checkpoint import save_checkpoint
from elastic.cost import DecoderCostModel, Phase
from elastic.folder import new_folder
from elastic.record import CheckpointRecord
from tests.cli.conftest import elastic


@pytest.fixture
def decoder_dir(_universal_models, tmp_path):
    """A universal Llama that was not trained."""
    model = copy.deepcopy(_universal_models["llama"])
    record = CheckpointRecord(
        kind="universal",
        family="llama",
        elastic_version=library.__version__,
        input_shapes={"input_ids": [1, 16]},
        space={"ffn": [0.25, 0.5, 1.0]},
    )
    with new_folder(tmp_path / "decoder") as folder:
        save_checkpoint(model, record, folder)
    return tmp_path / "decoder"


@pytest.mark.parametrize(("options", "context"), [((), 16), (("--context", 40), 40)])
def test_info_says_what_a_step_costs(_universal_models, decoder_dir, options, context):
    model = _universal_models["llama"]
    result = elastic("info", decoder_dir, "--phase", "decode", *options, "--json")
    assert result.code == 0, result.err
    largest = result.json["subnets"]["largest"]
    costs = DecoderCostModel(type(model), model.config, Phase("decode", context))
    assert largest["cost"] == costs.cost(library.Subnet.from_dict(largest["subnet"])).to_dict()
    assert largest["cost"]["cache_bytes"] > 0
    printed = elastic("info", decoder_dir, "--phase", "decode", *options).out
    assert f"costs for one token after {context}" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", 9), "--context 9 belongs to a phase; add --phase prefill or --phase decode."),
        (("--phase", "decod"), "--phase decod; did you mean 'decode'?"),
        (("--phase", "decode", "--context", 0), "context=0 must be 1 or more"),
        (("--phase", "decode", "--context", 64), "needs 65 positions, and the model takes 64"),
        (("--phase", "decode", "--input-shape", "1x9"), "give either --input-shape or --phase decode"),
    ],
)
def test_bad_options_are_one_sentence(decoder_dir, options, message):
    result = elastic("info", decoder_dir, *options)
    assert result.code == 2
    assert message in result.err


def test_other_models_have_no_phases(universal_dir, tmp_path):
    for command in (("info", universal_dir), ("search", universal_dir, "--flops", "50%"),
                    ("extract", universal_dir, "--flops", "50%", "-o", tmp_path / "out"),
                    ("pareto", universal_dir, "-o", tmp_path / "out")):  # fmt: skip
        result = elastic(*command, "--phase", "decode", "--context", 4)
        assert result.code == 2
        assert "generate no text" in result.err
        assert not (tmp_path / "out").exists()
