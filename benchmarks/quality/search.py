r"""What each search method finds at ten budgets: chosen on validation data, compared on test data.

    elastic train recipes/bignas.yaml -o universal
    python benchmarks/quality/search.py universal -o benchmarks/results/search_vit_digits.csv

Regret is how much better the best subnet of any method is on test data at the same budget. Evaluations are the subnets
that a method had to measure for this budget, were it the only one; the predictor's single changes and samples are among
them, though a second budget does not pay for them again. Evolution may measure ten times as many. Noise is the standard
deviation that the choice of examples adds to differences between subnets (see `elastic.selection.shrinkage`). Where all
subnets have been measured (`measure_all.py`), a row says which of all within the budget is the best on validation data.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.cost import Budget
from elastic.pipeline import Universal
from elastic.selection import Measured, SearchResult, search
from elastic.selection.predictor import Predictor
from elastic.selection.search import rank

METHODS = ("predictor", "heuristic", "uniform", "random", "evolution")
NUM_BUDGETS = 10


def budgets(universal: Universal) -> list[int]:
    """FLOPs between the smallest subnet and the largest, evenly, without both ends."""
    space, costs = universal.elastic.resolved, universal.cost_model
    least, most = (costs.cost(subnet).flops for subnet in (space.smallest, space.largest))
    return [least + (most - least) * (index + 1) // (NUM_BUDGETS + 1) for index in range(NUM_BUDGETS)]


def agreement(universal: Universal) -> float:
    """Rank correlation of everything measured on one half of the validation examples with the other half."""
    halves = [quality.halves for _, quality in universal.measured.items() if quality.halves is not None]
    return float(spearmanr(*zip(*halves, strict=True)).statistic)


def all_measured(universal: Universal) -> list[Measured]:
    """Every subnet of the space with its quality on validation data; empty if some were not measured."""
    space, costs = universal.elastic.resolved, universal.cost_model
    found = [Measured(s, costs.cost(s), quality, "any") for s, quality in universal.measured.items() if s in space]
    return found if len(found) == space.num_subnets else []


def row(
    budget: int, method: str, best: Measured, evaluations: int, result: SearchResult | None = None
) -> dict[str, Any]:
    """What one method found at one budget."""
    predictor, shrinkage = (result.predictor, result.shrinkage) if result else (None, None)
    return {
        "budget": budget, "metric": best.quality.metric, "method": method, "evaluations": evaluations,
        "validation": best.quality.value, "flops": best.cost.flops, "subnet": best.subnet.describe(),
        "rank_correlation": "" if predictor is None else round(predictor.rank_correlation, 4),
        "expected": "" if best.expected is None else best.expected,
        "noise": "" if shrinkage is None else round(shrinkage.noise, 5),
        "weight_of_measured": "" if shrinkage is None else round(shrinkage.weight, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="universal model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", type=int, nargs="+", choices=range(1, NUM_BUDGETS + 1), metavar="N", help="of ten")
    parser.add_argument("--random", type=int, default=100, help="subnets that random search measures")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    universal = Universal.open(args.folder)
    predictor: Predictor | None = None
    better = 1 if universal.task.metric.higher_is_better else -1
    on_test = functools.cache(lambda subnet: universal.measure(subnet, "test").value)
    rows: list[dict[str, Any]] = []
    every, points = budgets(universal), all_measured(universal)
    for flops in [every[number - 1] for number in args.budgets] if args.budgets else every:
        budget, found = Budget(flops=flops), []
        num_predictor = 100
        for method in args.methods:
            result = search(
                universal.model, budget, universal.measure, cost_model=universal.cost_model, method=method,
                num_candidates={"random": args.random, "evolution": 10 * num_predictor}.get(method, 48),
            )  # fmt: skip
            if method == "predictor":
                num_predictor, predictor = result.num_evaluations, result.predictor
            found.append((result.best.subnet, row(flops, method, result.best, result.num_evaluations, result)))
        if within := [point for point in points if point.cost.flops <= flops]:
            best = min(within, key=rank)
            found.append((best.subnet, row(flops, "all", best, len(within))))
        tested = [{**of_method, "test": on_test(subnet)} for subnet, of_method in found]
        best_test = max(better * of_method["test"] for of_method in tested)
        rows += [{**of_method, "regret": round(best_test - better * of_method["test"], 4)} for of_method in tested]
        write_csv(args.output, rows)
        print(*rows[-len(found) :], sep="\n", flush=True)
    print(f"halves of the validation examples agree on what was measured: {agreement(universal):.2f}")
    if predictor is not None and points:
        correlation = spearmanr(*zip(*((predictor(p.subnet), p.quality.score) for p in points), strict=True)).statistic
        print(f"rank correlation of the predictor with all {len(points)} subnets: {correlation:.3f}")
    for method in (*args.methods, "all"):
        mine = [of_method for of_method in rows if of_method["method"] == method]
        if mine:
            regret, count = (
                statistics.mean(of_method[name] for of_method in mine) for name in ("regret", "evaluations")
            )
            best_at = sum(of_method["regret"] == 0 for of_method in mine)
            print(
                f"{method}: mean regret {regret:.4f}, the best at {best_at} budgets, {count:.0f} evaluations a budget"
            )


if __name__ == "__main__":
    main()
