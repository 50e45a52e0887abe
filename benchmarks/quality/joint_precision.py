r"""What choosing the precision with the subnet is worth: the best within several latencies in float32, int8, or either.

    elastic train recipes/matformer.yaml -o universal
    elastic profile bundles/* -o table.json     # bundles of a few subnets, each in fp32 and in int8
    python benchmarks/quality/joint_precision.py universal table-fp32.json table-int8.json \
        -o benchmarks/results/joint_precision_vit_digits.csv

Every row is a search of its own with the same numbers of measurements. Subnets and precisions are chosen on validation
data, measured in the precision on ONNX Runtime; ``test`` is the quality of the chosen pair on test data, likewise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import write_csv

from elastic.cli.joint import export_options, precision_of
from elastic.cost import Budget, LatencyTable, check_together
from elastic.export import LoweredQuality, PrecisionOptions, calibration_of_task, read_universal
from elastic.pipeline import Universal
from elastic.selection import Measured, joint_search


def budgets(universal: Universal, tables: list[LatencyTable], count: int) -> list[float]:
    """Milliseconds from the fastest pair to the slowest, by equal factors, without both ends."""
    space = universal.elastic.resolved
    costs = [universal.cost_model.with_table(table) for table in tables]
    least = min(cost.cost(space.smallest).latency_ms or 0.0 for cost in costs)
    most = max(cost.cost(space.largest).latency_ms or 0.0 for cost in costs)
    return [least * (most / least) ** ((index + 1) / (count + 1)) for index in range(count)]


def on_test(universal: Universal, tables: list[LatencyTable], point: Measured) -> float:
    """The quality of a chosen pair on test data, in its precision."""
    export_as = export_options(tables, point.precision)
    if export_as is None:
        return universal.measure(point.subnet, "test").value
    task = replace(universal.task, datasets={**universal.task.datasets, "validation": universal.task.datasets["test"]})
    options = PrecisionOptions(target=export_as.get("target", "cpu-x86"), calibration=calibration_of_task(task, 512))
    measure = LoweredQuality(read_universal(universal.folder, universal.model), point.precision, options)
    return measure(point.subnet).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="universal model")
    parser.add_argument("tables", type=Path, nargs="+", help="latency tables, one for each precision")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--budgets", type=int, default=6)
    parser.add_argument("--lowered", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    universal = Universal.open(args.folder)
    tables = [LatencyTable.read(path) for path in args.tables]
    check_together(tables)
    precisions = {table.precision: precision_of(universal, table) for table in tables}
    searches = {**{name: [one] for name, one in precisions.items()}, "joint": list(precisions.values())}
    rows: list[dict[str, Any]] = []
    for limit in budgets(universal, tables, args.budgets):
        for name, chosen in searches.items():
            reachable = [one for one in chosen if _fits(universal, one.cost_model, limit)]
            row = {"budget_ms": round(limit, 5), "search": name}
            if reachable:
                result = joint_search(
                    universal.model, Budget(latency=f"{limit}ms"), universal.measure, chosen, num_lowered=args.lowered
                )
                best = result.best
                row |= {
                    "precision": best.precision, "subnet": best.subnet.describe(),
                    "latency_ms": round(best.cost.latency_ms or 0.0, 5), "flops": best.cost.flops,
                    "validation": round(best.quality.value, 3), "test": round(on_test(universal, tables, best), 3),
                    "evaluations": result.num_evaluations, "lowered": result.num_lowered,
                    "loss_int8": round(loss, 3)
                    if "int8" in result.by_precision and (loss := result.by_precision["int8"].loss) is not None
                    else "",
                }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_csv(args.output, [{column: row.get(column, "") for column in columns} for row in rows])


def _fits(universal: Universal, cost_model: Any, limit: float) -> bool:
    return (cost_model.cost(universal.elastic.resolved.smallest).latency_ms or 0.0) <= limit


if __name__ == "__main__":
    main()
