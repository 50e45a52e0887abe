"""The demo: from real images to a proven ONNX file, by the commands that a user types."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

RECIPE = "recipes/matformer_vit_digits.yaml"


def main() -> int:
    """Run every station into the folder that the first argument names; return the first failure's exit code."""
    folder = Path(sys.argv[1])
    universal, small, bundle, report = (str(folder / name) for name in ("universal", "half", "bundle", "report"))
    # Of finished stations, only training is kept: the others take seconds.
    for name in (small, bundle, report):
        shutil.rmtree(name, ignore_errors=True)
    training = Path(universal + ".training")
    stations = [
        [] if Path(universal).exists() else ["train", RECIPE, "-o", universal, *(["--resume"] * training.exists())],
        ["info", universal],
        ["eval", universal],
        ["pareto", universal, "-o", report],
        ["extract", universal, "--flops", "50%", "-o", small],
        ["export", small, "--to", "onnx", "-o", bundle],
        ["verify", bundle],
        ["bench", bundle],
    ]
    started = time.perf_counter()
    for arguments in filter(None, stations):
        print("\n$ elastic " + " ".join(arguments), flush=True)  # noqa: T201
        finished = subprocess.run([sys.executable, "-m", "elastic.cli", *arguments], check=False)
        if finished.returncode:
            return finished.returncode
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at {report}/index.html.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
