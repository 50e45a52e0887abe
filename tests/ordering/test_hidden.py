"""The residual stream's dimensions change places through the whole model, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from elastic.errors import ElasticError
from elastic.extraction import largest_difference, sample_inputs
from elastic.families import get_family
from elastic.nested import active, get_elastic, make_elastic
from elastic.ordering import permute_hidden, score_hidden
from elastic.space import SearchSpace, Subnet
from tests.tiny import MODELS, tiny_bert_base, tiny_bert_masked_lm, tiny_llama, tiny_vit

ELASTIC = [name for name in sorted(MODELS) if not get_family(MODELS[name]().config).hidden_fixed]
RETURN_STREAM = ("bert_base", "xlm_roberta", "mpnet")


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("name", ELASTIC)
def test_any_permutation_preserves_the_function(name):
    model = MODELS[name]()
    inputs = sample_inputs(model.config, batch=3)
    expected = outputs(model, inputs)
    before = {key: value.clone() for key, value in model.named_parameters()}
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    permute_hidden(model, order)
    actual = outputs(model, inputs)
    assert largest_difference(expected[..., order] if name in RETURN_STREAM else expected, actual) <= 1e-5
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    # All but biases of projections into heads and neurons, norms inside of heads, and heads of labels.
    assert len(moved) > 0.6 * len(before)
    assert any("embed" in key or "wte" in key or "conv" in key for key in moved)


def test_tied_embeddings_are_permuted_once_and_stay_tied():
    model = tiny_bert_masked_lm()
    inputs = sample_inputs(model.config, batch=3)
    expected = outputs(model, inputs)
    permute_hidden(model, list(reversed(range(32))))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert largest_difference(expected, outputs(model, inputs)) <= 1e-5


@pytest.mark.parametrize("build", [tiny_vit, tiny_bert_base, tiny_llama])
def test_dimensions_that_carry_nothing_come_last(build, batches):
    """By activations and by weights: after ordering, cutting them off changes little."""
    for data in ((), "calibration"):
        model = build()
        idle = [3, 4, 17, 30]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                layer_name = name.replace(f".{name.split('.')[-2]}", "")
                for dim, size in enumerate(parameter.shape):
                    # Of these models the hidden size is 32, and nothing else is.
                    if size == 32 and not _is_axis(name, dim, layer_name):
                        parameter.index_fill_(dim, torch.tensor(idle), 1e-4)
        scores = score_hidden(model, batches(model) if data else ())
        assert scores.shape == (32,)
        assert set(scores.argsort()[:4].tolist()) == set(idle)


def _is_axis(name: str, dim: int, layer_name: str) -> bool:
    """Rows into heads and columns out of them are 32 as well."""
    into = any(part in name for part in ("q_proj", "query", "key", "value"))
    out = any(part in name for part in ("o_proj", "attention.output.dense"))
    return (into and dim == 0) or (out and dim == 1) or (into and name.endswith("bias"))


def test_padding_does_not_count():
    model = tiny_bert_base()
    inputs = sample_inputs(model.config, batch=1)
    longer = {name: torch.cat([value, torch.zeros_like(value)], 1) for name, value in inputs.items()}
    assert torch.allclose(score_hidden(model, [inputs]), score_hidden(model, [longer]), rtol=1e-4)


def test_what_a_slice_keeps_is_what_scores_most(batches):
    """On a random model, the slice of the most important dimensions is nearer to the whole than the least important."""
    distances = []
    for sign in (1, -1):
        model = tiny_llama()
        inputs = sample_inputs(model.config, batch=4)
        full = outputs(model, inputs)
        permute_hidden(model, (-sign * score_hidden(model, batches(model))).argsort().tolist())
        make_elastic(model, SearchSpace())
        with active(model, Subnet((64,) * 3, (4,) * 3, hidden=24)):
            distances.append(float((outputs(model, inputs) - full).square().mean()))
    assert distances[0] < distances[1]


def test_an_elastic_model_is_permuted_whole_while_a_slice_runs():
    model = make_elastic(tiny_vit(), SearchSpace(hidden=[0.5, 1.0]))
    inputs = sample_inputs(model.config, batch=2)
    full = outputs(model, inputs)
    with active(model, get_elastic(model).resolved.smallest):
        permute_hidden(model, list(reversed(range(32))))
    assert largest_difference(full, outputs(model, inputs)) <= 1e-5


def test_refusals():
    with pytest.raises(ElasticError, match="the order of the hidden size is not a permutation of 32 dimensions"):
        permute_hidden(tiny_vit(), [0] * 32)
    with pytest.raises(ElasticError, match="cannot be ordered, because the embeddings of Gemma are scaled"):
        score_hidden(MODELS["gemma2"]())


def test_activations_that_are_no_numbers_are_refused(batches):
    model = tiny_vit()
    with torch.no_grad():
        model.get_submodule("vit.layernorm").weight[0] = torch.nan
    with pytest.raises(ElasticError, match="activations on the calibration data are NaN"):
        score_hidden(model, batches(model))
