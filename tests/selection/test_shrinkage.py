"""Expected quality: nearer to the truth than what was measured in noise, and the same where there is none."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.cost import Budget, CostModel
from elastic.nested import make_elastic
from elastic.selection import Quality, search
from elastic.selection.predictor import choices_of, fit_predictor
from elastic.selection.shrinkage import MIN_SUBNETS, fit_shrinkage
from elastic.space import ModelDims, SearchSpace, Subnet
from tests.tiny import tiny_vit

SPACE = SearchSpace(ffn=(0.25, 0.5, 0.75, 1.0)).resolve(ModelDims(num_layers=6, hidden=32, ffn=64, heads=4, kv_heads=4))


class Noisy:
    """Quality that adds up over layers, with interactions, measured on two halves of so many examples."""

    def __init__(self, *, noise: float, interaction: float = 0.0, higher: bool = True, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.noise, self.interaction, self.higher, self.seed = noise, interaction, higher, seed
        self.worth = {(layer, "ffn", width): rng.uniform(0, 1) for layer in range(6) for width in SPACE.ffn}

    def true(self, subnet: Subnet) -> float:
        together = random.Random(f"{self.seed} {subnet}").gauss(0, self.interaction) if self.interaction else 0.0
        value = sum(self.worth.get(choice, 0.0) for choice in choices_of(subnet)) + together
        return value if self.higher else -value

    def __call__(self, subnet: Subnet) -> Quality:
        rng = random.Random(f"noise {self.seed} {subnet}")
        # Half of the examples have twice the variance.
        halves = [self.true(subnet) + rng.gauss(0, self.noise * 2**0.5) for _ in range(2)]
        # All subnets find the same examples hard.
        halves[0] += 7.0
        name = "accuracy" if self.higher else "loss"
        return Quality(name, statistics.mean(halves), self.higher, "validation", 1000, None, (halves[0], halves[1]))


def seen_by(measure: Noisy, count: int = 120) -> tuple:
    seen: dict[Subnet, Quality] = {}

    def remember(subnet):
        return seen.setdefault(subnet, measure(subnet))

    predictor = fit_predictor(SPACE, remember)
    rng = random.Random(9)
    while len(seen) < count:
        remember(SPACE.sample(rng))
    return predictor, seen


@pytest.mark.parametrize("higher", [True, False])
def test_in_noise_the_expected_is_nearer_to_the_truth(higher):
    measure = Noisy(noise=0.5, higher=higher)
    predictor, seen = seen_by(measure)
    shrinkage = fit_shrinkage(predictor, seen)
    assert shrinkage.noise == pytest.approx(0.5, rel=0.3)
    assert shrinkage.weight < 0.5

    def error(estimate):
        # All values have the shift of the first half in them.
        return statistics.mean((estimate(s, q) - 3.5 - measure.true(s)) ** 2 for s, q in seen.items()) ** 0.5

    assert error(shrinkage) < 0.6 * error(lambda subnet, quality: quality.value)


def test_what_is_no_noise_is_kept():
    """Where subnets differ from the prediction in earnest, the measured quality stands."""
    predictor, seen = seen_by(Noisy(noise=0.01, interaction=0.5))
    shrinkage = fit_shrinkage(predictor, seen)
    assert shrinkage.weight > 0.95


def test_quality_without_halves_tells_no_noise():
    predictor, seen = seen_by(Noisy(noise=0.5))
    assert fit_shrinkage(predictor, dict(list(seen.items())[: MIN_SUBNETS - 1])) is None
    plain = {s: Quality(q.metric, q.value, q.higher_is_better, q.split, q.num_examples) for s, q in seen.items()}
    assert fit_shrinkage(predictor, plain) is None


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_the_expected_lies_between_measured_and_predicted(seed, noise, interaction):
    predictor, seen = seen_by(Noisy(noise=noise, interaction=interaction, seed=seed), count=70)
    shrinkage = fit_shrinkage(predictor, seen)
    assert 0 <= shrinkage.weight <= 1
    for subnet, quality in seen.items():
        ends = sorted([quality.value, shrinkage.predictor(subnet)])
        assert ends[0] - 1e-9 <= shrinkage(subnet, quality) <= ends[1] + 1e-9


def test_search_returns_what_is_expected_to_be_best():
    """Its true quality, over draws of the examples, is above that of the best measured of the same subnets."""
    model = make_elastic(tiny_vit(), SearchSpace(ffn=(0.25, 0.5, 0.75, 1.0), heads=(0.5, 1.0)))
    cost_model = CostModel.of(model, {"pixel_values": (1, 1, 8, 8)})
    rng = random.Random(3)
    worth = {(axis, i): rng.uniform(0.5, 1.5) for axis in ("ffn", "heads") for i in range(3)}

    def true(subnet):
        return sum(worth["ffn", i] * f / 64 + worth["heads", i] * h / 4
                   for i, (f, h) in enumerate(zip(subnet.ffn, subnet.heads, strict=True)))  # fmt: skip

    expected, measured = [], []
    for seed in range(12):

        def evaluate(subnet, seed=seed):
            noise = random.Random(f"{seed} {subnet}")
            halves = [true(subnet) + noise.gauss(0, 0.5) for _ in range(2)]
            return Quality("accuracy", sum(halves) / 2, True, "validation", 100, None, (halves[0], halves[1]))

        result = search(model, Budget(flops="80%"), evaluate, cost_model=cost_model)
        assert result.best.expected == max(point.expected for point in result.measured)
        expected.append(true(result.best.subnet))
        measured.append(true(max(result.measured, key=lambda point: point.quality.value).subnet))
    assert statistics.mean(expected) > statistics.mean(measured) + 0.05
