from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from elastic.export.precision.calibration import CalibrationData, complete
from elastic.export.precision.lowering import Lowering
from elastic.export.precision.options import PrecisionOptions
from elastic.export.runtime.manifest import Manifest
from elastic.export.runtime.ort import open_graph


@dataclass(frozen=True)
class Graph:
    """A graph in float32, with calibration data and what it computes on the held-out part."""

    path: Path
    manifest: Manifest
    data: CalibrationData
    folder: Path

    def lowering(self, precision: str, **options: object) -> Lowering:
        settings = PrecisionOptions(calibration=self.data, **options)
        settings.check(precision)
        return Lowering.of(self.path, precision, settings, self.manifest.inputs)

    def run(self, model: onnx.ModelProto | None = None) -> np.ndarray:
        """Return the first output on the held-out inputs."""
        path = self.path
        if model is not None:
            path = self.folder / "lowered.onnx"
            onnx.save(model, path)
            onnx.checker.check_model(str(path), full_check=True)
        session = open_graph(path, threads=1)
        feed = complete(self.data.held_out[0], self.manifest.inputs)
        halves = {tensor.name for tensor in session.get_inputs() if tensor.type == "tensor(float16)"}
        feed = {name: array.astype(np.float16) if name in halves else array for name, array in feed.items()}
        return session.run([self.manifest.outputs[0].name], feed)[0].astype(np.float64)

    def cosine(self, model: onnx.ModelProto) -> float:
        expected, actual = self.run(), self.run(model)
        norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
        return float(((expected * actual).sum(-1) / norms).mean())


@pytest.fixture
def graph_of(exported, tmp_path) -> Callable[[str], Graph]:
    def get(name: str) -> Graph:
        report = exported(name)[1]
        rng = np.random.default_rng(0)
        feeds = []
        for _ in range(3):
            if report.manifest.inputs[0].name == "input_ids":
                feeds.append({"input_ids": rng.integers(1, 60, (8, 12))})
            else:
                shape = (8, *report.manifest.inputs[0].shape[1:])
                feeds.append({report.manifest.inputs[0].name: rng.standard_normal(shape, dtype=np.float32)})
        data = CalibrationData(tuple(feeds[:2]), tuple(feeds[2:]), "made up")
        return Graph(report.bundle_dir / "model.onnx", report.manifest, data, tmp_path)

    return get
