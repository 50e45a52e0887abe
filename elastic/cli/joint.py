"""Searches over subnets and precisions together, for the commands that have several latency tables."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from elastic.cli.options import read_multiple_of, read_search_method
from elastic.cli.output import note, print_json, print_table, progress
from elastic.cli.points import expected_column

if TYPE_CHECKING:
    from elastic.cost import Budget, LatencyModel, LatencyTable
    from elastic.pipeline import Universal
    from elastic.selection import JointResult, Precision
    from elastic.space import SearchSpace

FP32, INT8_STATIC, TENSORRT = "fp32", "int8-static", "tensorrt"
NUM_CALIBRATION = 512
"""As `elastic export --recipe` calibrates, so that it makes the graph that was measured."""


def chooses_precision(tables: Sequence[LatencyTable]) -> bool:
    """Whether subnets must be measured in the precisions of these tables: float32 is what models run in."""
    return any(table.precision != FP32 for table in tables)


def export_options(tables: Sequence[LatencyTable], precision: str) -> dict[str, str] | None:
    """Return the options of `elastic export` in this precision for the tables' device; None for float32."""
    if precision == FP32:
        return None
    device = next(table.device for table in tables if table.precision == precision)
    runs_engines = device.runtime.startswith(TENSORRT)
    options = {"to": TENSORRT if runs_engines else "onnx", "precision": precision}
    if precision != INT8_STATIC:
        return options
    arm = device.machine.lower() in ("aarch64", "arm64")
    return {**options, "target": TENSORRT if runs_engines else "cpu-arm" if arm else "cpu-x86"}


def as_arguments(export_as: Mapping[str, str]) -> str:
    """Return options of an export as they are written."""
    return " ".join(f"--{name} {value}" for name, value in export_as.items())


def search_settings(
    universal: Universal,
    *,
    method: str | None,
    uniform: bool,
    candidates: int,
    within: SearchSpace | None,
    multiple_of: str,
) -> dict[str, Any]:
    """Return what a search takes from a command's options, whether it chooses subnets alone or precisions too."""
    from elastic.pipeline import is_stock

    return {
        "method": read_search_method(method, uniform),
        "accept": lambda subnet: is_stock(universal, subnet),
        "num_candidates": candidates,
        "within": within,
        "multiple_of": read_multiple_of(multiple_of),
    }


def search_precisions(
    universal: Universal, tables: Sequence[LatencyTable], budget: Budget, num_lowered: int, settings: Mapping[str, Any]
) -> JointResult:
    """Return the best subnet and precision of a universal model within a budget.

    Raises:
        BudgetError: if no pair meets the budget.
        CheckError: if no pair within it could be measured.
        CheckpointError: if a table is of a precision that does not exist.
    """
    from elastic.selection import joint_search

    precisions = [precision_of(universal, table) for table in tables]
    with progress("Measuring") as on_progress:
        return joint_search(
            universal.model,
            budget,
            universal.measure,
            precisions,
            num_lowered=num_lowered,
            on_progress=on_progress,
            **settings,
        )


def precision_of(universal: Universal, table: LatencyTable) -> Precision:
    """Return the precision of a latency table, with how a universal model's subnets are measured in it.

    Raises:
        BudgetError: if the table was measured at other input sizes.
        CheckpointError: if there is no such precision.
    """
    from elastic.selection import Precision

    costs = universal.cost_model.with_table(table)
    export_as = export_options([table], table.precision)
    if export_as is None:
        return Precision(table.precision, costs)
    from elastic.export import LoweredQuality, PrecisionOptions, calibration_of_task, read_universal
    from elastic.export.runtime.ort import runtime_version

    data = calibration_of_task(universal.task, NUM_CALIBRATION)
    options = PrecisionOptions(target=export_as.get("target", "cpu-x86"), calibration=data)
    options.check(table.precision)
    measure = LoweredQuality(read_universal(universal.folder, universal.model), table.precision, options)
    conditions = {
        **export_as,
        "num_calibration": NUM_CALIBRATION,
        "runtime": runtime_version(),
        "machine": platform.machine(),
    }
    return Precision(table.precision, costs, universal.remembering(measure, conditions))


def print_joint(result: JointResult, universal: Universal, tables: Sequence[LatencyTable], as_json: bool) -> None:
    """Print the best pair, and what each precision gives within the same budget."""
    if as_json:
        print_json({
            "best": result.best.to_dict(),
            "by_precision": {
                name: {
                    "best": None if one.best is None else one.best.to_dict(), "within": one.num_within,
                    "measured": one.num_measured, "loss": one.loss, "error": one.error, "reason": one.reason or None,
                } for name, one in result.by_precision.items()
            },
            "measured": [point.to_dict() for point in result.measured],
            "num_evaluations": result.num_evaluations,
            "num_lowered": result.num_lowered,
            "tables": [one.to_dict() for one in _latencies(universal, tables)],
        })  # fmt: skip
        return
    from elastic.cost import format_quantity, format_spent

    ranked = sorted(
        (one.best for one in result.by_precision.values() if one.best is not None), key=result.measured.index
    )
    quality = result.best.quality
    print_table(
        [
            {
                "precision": point.precision,
                "kind": point.kind,
                "subnet": point.subnet.describe(),
                "FLOPs": format_quantity(point.cost.flops),
                "parameters": format_quantity(point.cost.params),
                "predicted latency": format_spent("latency", point.cost.latency_ms or 0.0),
                f"{quality.metric} ({quality.split}, {quality.num_examples})": f"{point.quality.value:.4g}",
                **expected_column(point),
            }
            for point in ranked
        ],
        title=f"Best of each precision with {result.limits}",
    )
    note_joint(result, universal, tables)
    note("Next: elastic extract with the same options and -o OUT cuts the first, and says how to export it.")


def note_joint(result: JointResult, universal: Universal, tables: Sequence[LatencyTable]) -> None:
    """Say where latencies come from, what each precision costs, and how many measurements that took."""
    for latency in _latencies(universal, tables):
        note(latency.describe())
    for name, one in result.by_precision.items():
        if one.best is None:
            note(f"{name}: {one.reason}")
        elif one.loss is not None:
            error = "" if one.error is None else f", predicted with an error of {one.error:.2g}"
            note(
                f"{name} loses {one.loss:.2g} {one.best.quality.metric} on average of the {one.num_measured} that were "
                f"measured in it{error}."
            )
    note(
        f"{result.num_evaluations} subnets measured in float32, {result.num_lowered} exported and measured in another "
        "precision."
    )


def _latencies(universal: Universal, tables: Sequence[LatencyTable]) -> list[LatencyModel]:
    models = (universal.cost_model.with_table(table).latency for table in tables)
    return [model for model in models if model is not None]
