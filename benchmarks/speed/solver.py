"""How long the exact solver takes: 48 layers, 8 widths, 4 head counts and skip flags, under three budgets.

    python benchmarks/speed/solver.py

Random effects that grow as choices shrink, random budgets between 30 and 80 percent; one thread. The bound proves how
far from the optimum a choice may be.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.selection.solver import Option, solve

NUM_LAYERS, NUM_WIDTHS, NUM_HEADS = 48, 8, 4
NUM_PROBLEMS = 40


def problem(seed: int) -> tuple[list[list[Option]], list[float]]:
    rng = random.Random(seed)
    groups = []
    for _ in range(NUM_LAYERS):
        worth = rng.uniform(0.2, 2.0)
        lost_by_width = [worth * rng.uniform(0.5, 1.5) * (1 - i / NUM_WIDTHS) ** 2 for i in range(NUM_WIDTHS + 1)]
        lost_by_heads = [worth * rng.uniform(0.5, 1.5) * (1 - i / NUM_HEADS) ** 2 for i in range(NUM_HEADS + 1)]
        groups.append(
            [
                # FLOPs, parameters, and a latency that is no multiple of either.
                Option(-(lost_f + lost_h), (f * 1e9 + h * 7e8, f * 3e6 + h * 1e6, f + 2 * h + rng.random()))
                for f, lost_f in enumerate(lost_by_width)
                for h, lost_h in enumerate(lost_by_heads)
            ]
        )
    most = [sum(max(option.costs[k] for option in group) for group in groups) for k in range(3)]
    return groups, [cost * rng.uniform(0.3, 0.8) for cost in most]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for seed in range(NUM_PROBLEMS):
        groups, limits = problem(seed)
        start = time.perf_counter()
        solution = solve(groups, limits)
        seconds = time.perf_counter() - start
        gap = (solution.bound - solution.score) / abs(solution.score)
        rows.append({"problem": seed, "seconds": round(seconds, 3), "relative_gap": f"{gap:.1e}"})
    seconds = [row["seconds"] for row in rows]
    print(f"median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s of {NUM_PROBLEMS}")
    print(f"largest gap {max(float(row['relative_gap']) for row in rows):.1e}")
    write_csv(Path(__file__).parents[1] / "results" / "solver.csv", rows)


if __name__ == "__main__":
    main()
