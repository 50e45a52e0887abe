"""What a configuration's subnets would cost is what they cost."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlamaModel, MixtralConfig, ViTConfig, ViTModel

from elastic.cost import Budget, CostModel
from elastic.cost.plan import MAX_SUBNETS, class_of, make_plan, weight_bytes
from elastic.errors import BudgetError, FamilyError, SpaceError
from elastic.extraction import extract
from elastic.nested import get_elastic, make_elastic
from elastic.space import SearchSpace
from tests.tiny import SPACE, tiny_llama

SHAPES = {"input_ids": (1, 12)}


def test_costs_are_those_of_the_extracted_models():
    model = make_elastic(tiny_llama(), SPACE)
    plan = make_plan(LlamaForCausalLM, model.config, SPACE, SHAPES)
    assert {subnet for subnet, _ in plan.subnets} == set(get_elastic(model).resolved.uniform_subnets())
    assert plan.num_uniform == len(plan.subnets)
    flops = [cost.flops for _, cost in plan.subnets]
    assert flops == sorted(flops)
    for subnet, cost in plan.subnets:
        small = extract(model, subnet)
        assert cost == CostModel.of(model, SHAPES).cost(subnet)
        assert weight_bytes(cost) == {
            name: sum(p.numel() for p in small.parameters()) * size
            for name, size in (("float32", 4), ("bfloat16", 2), ("int8", 1))
        }


def test_a_budget_leaves_what_is_within_it():
    config = tiny_llama().config
    everything = make_plan(LlamaForCausalLM, config, SPACE, SHAPES).subnets
    largest = everything[-1][1]
    budget = Budget(params="70%", flops="80%")
    within = make_plan(LlamaForCausalLM, config, SPACE, SHAPES, budget).subnets
    expected = [
        (subnet, cost)
        for subnet, cost in everything
        if cost.params <= 0.7 * largest.params and cost.flops <= 0.8 * largest.flops
    ]
    assert 0 < len(expected) < len(everything)
    assert list(within) == expected
    with pytest.raises(BudgetError, match="the smallest has"):
        make_plan(LlamaForCausalLM, config, SPACE, SHAPES, Budget(params=10))


def test_a_large_grid_is_sampled_evenly():
    config = LlamaConfig(num_hidden_layers=12, hidden_size=32, intermediate_size=64, num_attention_heads=4)
    space = SearchSpace(
        ffn=tuple(range(8, 65, 8)), heads=(1, 2, 3, 4), layers=tuple(range(1, 13)), attention=(2, 6, 12)
    )
    plan = make_plan(LlamaForCausalLM, config, space, SHAPES)
    assert plan.num_uniform > MAX_SUBNETS >= len(plan.subnets) - 2
    listed = [subnet for subnet, _ in plan.subnets]
    assert plan.space.smallest in listed and plan.space.largest in listed


def test_nothing_is_allocated_for_70_billion_parameters():
    config = LlamaConfig(
        num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256, dtype=torch.bfloat16,
    )  # fmt: skip
    plan = make_plan(LlamaForCausalLM, config, SearchSpace(ffn=(0.5, 1.0)), SHAPES)
    assert plan.subnets[-1][1].params == 70_553_706_496  # as Meta states it for Llama 3 70B: 70.6 B
    assert plan.subnets[-1][1].weight_bytes == 2 * 70_553_706_496
    assert plan.space.num_subnets == 2**80


def test_the_class_of_a_configuration():
    assert class_of(LlamaConfig()) is LlamaForCausalLM
    assert class_of(ViTConfig()) is ViTModel
    assert class_of(LlamaConfig(architectures=["LlamaModel"])) is LlamaModel
    with pytest.raises(FamilyError, match="no class 'LlamaForMagic'"):
        class_of(LlamaConfig(architectures=["LlamaForMagic"]))
    with pytest.raises(FamilyError, match="mixtral"):
        class_of(MixtralConfig())
    with pytest.raises(SpaceError, match="not a whole number"):
        make_plan(LlamaForCausalLM, AutoConfig.for_model("llama"), SearchSpace(ffn=(0.3,)), SHAPES)
