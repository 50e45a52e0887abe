"""Converts the graph of an export to the precision that was asked for, and reports what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from elastic.errors import CheckError
from elastic.export.graph import save_model
from elastic.export.runtime.manifest import TensorSpec

from .judge import cosine_judge, final_judge
from .lowering import Lowering
from .mix import LayerReport, Progress, QuantizationReport, choose_mix, measure_sensitivity
from .options import FP32, INT8_STATIC, PrecisionOptions

RANKING_BATCHES = 2
"""Calibration batches on which single layers are judged."""


def apply_precision(
    path: Path,
    precision: str,
    options: PrecisionOptions,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    progress: Progress | None = None,
) -> QuantizationReport | None:
    """Replace a graph in float32 by one of another precision; return what that cost, where it was measured.

    Raises:
        CheckError: if no mix of precisions keeps the quality that was asked for, or the result is not valid ONNX.
        CheckpointError: if the calibration data does not fit the graph, or a pattern excludes nothing.
    """
    if precision == FP32:
        return None
    lowering = Lowering.of(path, precision, options, inputs)
    data, chosen = options.calibration, lowering.candidates
    sensitivity: dict[str, float] = {}
    fp32 = quantized = None
    if data is not None:
        final = final_judge(path, data, inputs, outputs)
        fp32 = final(path)
        if options.sensitivity or options.max_drop is not None:
            ranking = cosine_judge(path, data.feeds[:: _stride(len(data.feeds))], inputs, outputs, "calibration data")
            sensitivity = measure_sensitivity(lowering, ranking, progress)
        if options.max_drop is not None:
            chosen, quantized = choose_mix(lowering, sensitivity, final, fp32, options.max_drop)
    save_model(lowering.make(chosen, last=True), path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"the {precision} graph is not valid ONNX: {str(error).splitlines()[0]}") from None
    if data is not None and quantized is None:
        quantized = final(path)
    total = sum(map(lowering.macs, lowering.linears)) if lowering.activations else 0.0
    names = {linear.name for linear in chosen}
    layers = tuple(
        LayerReport(
            name=linear.name,
            macs_share=lowering.macs(linear) / total if total else 0.0,
            params=linear.shape[0] * linear.shape[1],
            cosine_loss=sensitivity.get(linear.name),
            quantized=linear.name in names,
        )
        for linear in lowering.linears
    )
    return QuantizationReport(
        precision=precision,
        target=options.target if precision == INT8_STATIC else None,
        calibration=None if data is None else data.source,
        num_calibration=0 if data is None else data.num_examples,
        macs_share=sum(layer.macs_share for layer in layers if layer.quantized) if total else None,
        layers=layers,
        fp32=fp32,
        quantized=quantized,
    )


def _stride(batches: int) -> int:
    return max(1, batches // RANKING_BATCHES)
