"""Writes ``build.sh``: what `python3 -m runtime build` does, with NVIDIA's own tool ``trtexec``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from elastic.export.runtime.manifest import Profile, TensorSpec

SCRIPT_NAME = "build.sh"

_HEAD = """\
#!/bin/sh
# Builds engines with trtexec, one for each profile: `sh build.sh`, on the device that will run them.
# `python3 -m runtime build` makes one engine of all profiles instead, and compares its outputs with the expected ones.
set -eu
cd "$(dirname "$0")"
TRTEXEC=${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}
HELP=$("$TRTEXEC" --help 2>&1 || true)
# The precision is that of the graph. TensorRT 11 knows nothing else; TensorRT 10 has to be told.
OPTIONS=
for option in --stronglyTyped --noTF32 --skipInference; do
    case $HELP in *"$option"*) OPTIONS="$OPTIONS $option" ;; esac
done
mkdir -p engines
"""


def write_script(folder: Path, graphs: Mapping[str, Sequence[TensorSpec]], profiles: Sequence[Profile]) -> Path:
    """Write the script with one ``trtexec`` line for every graph, of which the inputs are given, and every profile."""
    lines = [_HEAD.rstrip("\n")]
    for graph, inputs in graphs.items():
        stem = Path(graph).stem
        for number, profile in enumerate(profiles):
            plan = f"engines/trtexec.{stem}.profile{number}.plan"
            lines += [
                f"# {profile}",
                f'"$TRTEXEC" --onnx={shlex.quote(graph)} {shape_options(inputs, profile)} $OPTIONS \\',
                f'    --timingCacheFile=engines/trtexec.cache --saveEngine={plan}.part "$@"',
                f"mv {plan}.part {plan}",
            ]
    path = folder / SCRIPT_NAME
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def shape_options(inputs: Sequence[TensorSpec], profile: Profile) -> str:
    """Return ``--minShapes=... --optShapes=... --maxShapes=...`` for the inputs that have free dimensions."""
    free = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]
    if not free:
        return ""
    options = []
    for which in ("min", "opt", "max"):
        shapes = ",".join(f"{spec.name}:{'x'.join(map(str, profile.shape(spec, which)))}" for spec in free)
        options.append(f"--{which}Shapes={shapes}")
    return " ".join(options)
