"""The quality of subnets in a precision: each is cut, exported as it would be shipped, and judged on ONNX Runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from elastic.extraction import extract
from elastic.selection import Quality
from elastic.space import Subnet

from .onnx import export_onnx
from .precision.options import PrecisionOptions
from .source import FamilySource


@dataclass(frozen=True)
class LoweredQuality:
    """Measures subnets of a universal model in a precision, by the task whose training data calibrates."""

    source: FamilySource
    precision: str
    options: PrecisionOptions

    def __call__(self, subnet: Subnet) -> Quality:
        """Return the quality of a subnet's graph on the task's validation data.

        Raises:
            CheckError: if the graph does not compute what the model computes, as far as the precision can.
        """
        small = extract(self.source.model, subnet).eval()
        with tempfile.TemporaryDirectory() as folder:
            report = export_onnx(
                self.source.wrap(small, subnet),
                Path(folder) / "bundle",
                precision=self.precision,
                precision_options=self.options,
            )
        assert report.quantization is not None and report.quantization.quantized is not None
        return report.quantization.quantized
