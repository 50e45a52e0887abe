"""The gate of every export: the graph on ONNX Runtime against the model in PyTorch, at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elastic.errors import CheckError, CheckpointError

from .embedder import Exportable
from .inputs import ModelInputs, forward_outputs
from .precision.options import FP16, FP32
from .precision.similarity import Similarity, row_cosines, similarity
from .runtime.compare import Difference, compare
from .runtime.manifest import Parity, TensorSpec
from .runtime.ort import open_graph
from .runtime.samples import Sample


@dataclass(frozen=True)
class Tolerance:
    """How far a graph of one precision may be from the model in PyTorch."""

    max_abs_diff: float
    argmax_tie: float | None
    """Classes whose logits are this close may swap; None if classes are not compared."""


FP32_TOLERANCE = Tolerance(max_abs_diff=1e-4, argmax_tie=1e-5)
"""Measured: about 1e-6; a wrong mask or a lost bias costs 1e-2."""

FP16_SHARE = 0.01
"""Of the largest output, how much float16 may differ. Measured: about 0.002 of it."""

MIN_COSINES = {"fp16": 0.999, "int8": 0.97, "int8-static": 0.9, "int4": 0.9}
"""Of the outputs to those in float32, on average over all rows of random inputs; below, a graph is refused.

It tells a broken graph from a coarse one; what a precision costs on real inputs, calibration data says.
"""

MAX_SAMPLE_BYTES = 16_000_000


@dataclass(frozen=True)
class ParityResult:
    """What was compared, and the largest difference that was seen."""

    max_abs_diff: float
    tolerance: Tolerance
    sizes: tuple[dict[str, int], ...]
    similarity: Similarity | None = None
    """Of a quantized graph to the model."""

    def describe(self, precision: str, samples: str) -> Parity:
        """Return what a manifest says of it; ``samples`` is the file of the parity samples."""
        return Parity(
            precision=precision,
            max_abs_diff=self.max_abs_diff,
            tolerance=self.tolerance.max_abs_diff,
            argmax_tie=self.tolerance.argmax_tie,
            shapes=self.sizes,
            samples=samples,
        )


def reference_samples(
    model: Exportable, inputs: ModelInputs, sizes: Sequence[dict[str, int]] | None = None, seed: int = 0
) -> tuple[Sample, ...]:
    """Run the model as it is, with its own attention implementation, at every size that is to be compared.

    Args:
        model: as it is to be compared, in evaluation mode.
        inputs: what it takes.
        sizes: by default all that are compared.
        seed: of the inputs.

    Raises:
        CheckpointError: if it returns values that are not finite, with which nothing can be compared.
    """
    samples = []
    for number, one in enumerate(inputs.parity_sizes() if sizes is None else sizes):
        arrays = inputs.sample(one, seed=seed + number)
        tensors = {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}
        expected = forward_outputs(model, inputs, tensors)
        sample = Sample(arrays, {name: tensor.cpu().numpy() for name, tensor in expected.items()})
        for name, array in sample.outputs.items():
            if not np.isfinite(array).all():
                raise CheckpointError(
                    f"{type(model).__name__} returns '{name}' that is not finite for random inputs; repair the model "
                    "before exporting it."
                )
        samples.append(sample)
    return tuple(samples)


def samples_to_keep(samples: Sequence[Sample], limit: int = MAX_SAMPLE_BYTES) -> tuple[Sample, ...]:
    """Return the samples that travel with the bundle: all, or two if their outputs are larger than ``limit`` bytes."""
    size = sum(array.nbytes for sample in samples for array in sample.outputs.values())
    return tuple(samples if size <= limit else samples[:2])


def check_parity(
    graph: Path, inputs: ModelInputs, outputs: Sequence[TensorSpec], samples: Sequence[Sample], precision: str
) -> ParityResult:
    """Run the graph on ONNX Runtime and compare it with what PyTorch returned.

    Raises:
        CheckError: if an output differs by more than the tolerance of the precision (says by how much, and where).
    """
    return compare_samples(
        open_graph(graph), outputs, samples, inputs.parity_sizes(), precision, f"the exported {precision} graph"
    )


def compare_samples(
    session: Any,
    outputs: Sequence[TensorSpec],
    samples: Sequence[Sample],
    all_sizes: Sequence[dict[str, int]],
    precision: str,
    what: str,
) -> ParityResult:
    """Run samples on an open graph and compare its outputs with theirs.

    Args:
        session: of ONNX Runtime.
        outputs: of the graph.
        samples: inputs, and what PyTorch returned for them.
        all_sizes: those of each sample.
        precision: of the graph.
        what: runs, for the error.

    Raises:
        CheckError: if an output differs by more than the tolerance of the precision (says by how much, and where).
    """
    differences: list[Difference] = []
    cosines = []
    for sample, sizes in zip(samples, all_sizes, strict=True):
        try:
            actual = session.run([spec.name for spec in outputs], sample.inputs)
        except Exception as error:  # ONNX Runtime's own exception types share no base class.
            where = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise CheckError(f"ONNX Runtime cannot run {what} at {where}: {error}") from None
        mask = sample.inputs.get("attention_mask")
        for spec, array in zip(outputs, actual, strict=True):
            differences.append(compare(spec, sample.outputs[spec.name], array, mask, sizes))
            cosines.append(row_cosines(spec, sample.outputs[spec.name], array, mask))
    worst = max(differences, key=lambda difference: difference.max_abs_diff)
    found = None if precision == FP32 else _checked(similarity(cosines), precision)
    tolerance = _tolerance(precision, samples, worst)
    for difference in (worst, *differences):
        if failure := difference.failure(tolerance.max_abs_diff, tolerance.argmax_tie):
            raise CheckError(f"{what} does not compute what the model computes: {failure}.")
    return ParityResult(worst.max_abs_diff, tolerance, tuple(all_sizes), found)


def _tolerance(precision: str, samples: Sequence[Sample], worst: Difference) -> Tolerance:
    """Return what a precision may differ by; integers by twice what this machine saw, for another one's kernels."""
    if precision == FP32:
        return FP32_TOLERANCE
    if precision == FP16:
        largest = max(float(np.abs(array).max(initial=0.0)) for sample in samples for array in sample.outputs.values())
        return Tolerance(FP16_SHARE * max(largest, 1.0), None)
    return Tolerance(2 * worst.max_abs_diff, None)


def _checked(found: Similarity, precision: str) -> Similarity:
    """Return how alike outputs are.

    Raises:
        CheckError: if they are less alike than a graph of this precision may be.
    """
    needed = MIN_COSINES[precision]
    if not found.mean >= needed:
        raise CheckError(
            f"the {precision} graph's outputs have a cosine of {found.mean:.4f} to the model's, and {needed} "
            "is needed; export this model with --precision fp32."
        )
    return found
