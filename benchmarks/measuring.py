"""Ratios of things that take turns in one process, so that a busy machine disturbs all alike."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from elastic.pipeline.training import versions

ROOT = Path(__file__).resolve().parents[1]


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Run every contestant once a round, in alternating order; return their seconds, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(warmup + rounds):
        order = list(contestants) if index % 2 else list(reversed(contestants))
        for name in order:
            start = time.perf_counter()
            contestants[name]()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Return the median over rounds of one contestant's time by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def quality_arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark that trains by a recipe and measures quality."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="validation while a recipe is being designed")
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    return parser


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with how they were made: versions, machine, threads and command."""
    about = {
        **versions(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "command": " ".join(
            ["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *map(_portable, sys.argv[1:])]
        ),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about])
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


def _portable(argument: str) -> str:
    """Return an argument with the folders that the environment names by their names."""
    for name in ("ELASTIC_DATA", "ELASTIC_MODELS"):
        folder = os.environ.get(name)
        argument = argument.replace(folder, f"${name}") if folder else argument
    return argument
