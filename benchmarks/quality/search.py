r"""What each search method finds at ten budgets: chosen on validation data, compared on test data.

    elastic train recipes/bignas.yaml -o universal
    python benchmarks/quality/search.py universal -o benchmarks/results/search_vit_digits.csv

Regret is how much better the best subnet of any method is on test data at the same budget. Evaluations are the subnets
that a method had to measure for this budget, were it the only one; the predictor's single changes and samples are among
them, though a second budget does not pay for them again. Evolution may measure ten times as many. Noise is the standard
deviation that the choice of examples adds to differences between subnets (see `elastic.selection.shrinkage`).
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
from elastic.selection import search

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
    better = 1 if universal.task.metric.higher_is_better else -1
    on_test = functools.cache(lambda subnet: universal.measure(subnet, "test").value)
    rows: list[dict[str, Any]] = []
    every = budgets(universal)
    for flops in [every[number - 1] for number in args.budgets] if args.budgets else every:
        found = []
        num_predictor = 100
        for method in args.methods:
            count = {"random": args.random, "evolution": 10 * num_predictor}.get(method, 48)
            result = search(
                universal.model, Budget(flops=flops), universal.measure, cost_model=universal.cost_model,
                method=method, num_candidates=count,
            )  # fmt: skip
            if method == "predictor":
                num_predictor = result.num_evaluations
            found.append({
                "budget": flops, "metric": universal.task.metric.name, "method": method,
                "evaluations": result.num_evaluations,
                "validation": result.best.quality.value, "test": on_test(result.best.subnet),
                "flops": result.best.cost.flops, "subnet": result.best.subnet.describe(),
                "rank_correlation": "" if result.predictor is None else round(result.predictor.rank_correlation, 4),
                "expected": "" if result.best.expected is None else result.best.expected,
                "noise": "" if result.shrinkage is None else round(result.shrinkage.noise, 5),
                "weight_of_measured": "" if result.shrinkage is None else round(result.shrinkage.weight, 3),
            })  # fmt: skip
        best = max(better * row["test"] for row in found)
        rows += [{**row, "regret": round(best - better * row["test"], 4)} for row in found]
        write_csv(args.output, rows)
        print(*rows[-len(found) :], sep="\n", flush=True)
    print(f"halves of the validation examples agree on what was measured: {agreement(universal):.2f}")
    for method in args.methods:
        mine = [row for row in rows if row["method"] == method]
        regret, count = (statistics.mean(row[name] for row in mine) for name in ("regret", "evaluations"))
        best = sum(row["regret"] == 0 for row in mine)
        print(f"{method}: mean regret {regret:.4f}, the best at {best} budgets, {count:.0f} evaluations a budget")


if __name__ == "__main__":
    main()
