"""What an export for TensorRT does beyond one for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from elastic.errors import CheckError
from elastic.export.profiles import GivenInputs, ProfiledInputs, default_profiles, fixed_sizes, parse_profile

from .lint import lint_for_tensorrt
from .operators import OPERATORS

KIND = "tensorrt"


@dataclass(frozen=True)
class TensorRTTarget:
    """Engines for these sizes, by this version of TensorRT or any later one up to 11."""

    profiles: tuple[str, ...] = ()
    """As people write them: ``batch=1,sequence=16:64:128``. By default, a few fixed sizes."""
    version: str = "10.3"
    """The oldest TensorRT that should read the graph."""

    def at_profiles(self, inputs: GivenInputs) -> ProfiledInputs:
        """Return the inputs with the profiles.

        Raises:
            CheckpointError: if a profile does not fit the model.
        """
        given = tuple(parse_profile(text, inputs) for text in self.profiles)
        return ProfiledInputs(inputs, given or default_profiles(inputs))

    def finish(self, graph: Path, inputs: ProfiledInputs) -> None:
        """Give the graph numbers where all profiles agree, and check that TensorRT reads it.

        Raises:
            CheckError: if TensorRT would not read the graph (names the operator and the node).
        """
        fix_sizes(graph, fixed_sizes(inputs.profiles))
        free = frozenset(dim for spec in inputs.specs for dim in spec.shape if isinstance(dim, str))
        # Operators that are not read at all come first: they say more than how another one is used.
        findings = sorted(lint_for_tensorrt(graph, self.version, free=free), key=lambda one: one.operator in OPERATORS)
        if findings:
            more = f"; there are {len(findings) - 1} more findings" if len(findings) > 1 else ""
            raise CheckError(f"TensorRT {self.version} would not take this graph: {findings[0]}{more}.")


def fix_sizes(path: Path, fixed: Mapping[str, int]) -> None:
    """Replace names of dimensions by numbers at the inputs and outputs of a graph file; the rest follows from them."""
    if not fixed:
        return
    model = onnx.load(path, load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
