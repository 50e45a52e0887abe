"""Draw the CSVs of the quality benchmarks, an image of docs/images for each.

    python benchmarks/plot.py                      # all that have their CSV
    python benchmarks/plot.py embeddings search    # some
    python benchmarks/plot.py --results FOLDER --output FOLDER

Where a method was run with several seeds, markers are means and bars go from the lowest seed to the highest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from artifact_figures import decoder_precision, distilled, joint_precision, ordering, quantization, speculative
from figures import Plot, read, save
from training_figures import (
    embeddings, granularities, layerdrop, retrieval, router_signal, routers, search, sortednet, universal,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 80_000

PLOTS = (
    Plot("embeddings", "embeddings_stsb.csv", embeddings, together=True),
    Plot("retrieval", "embeddings_stsb.csv", retrieval, together=True),
    Plot("granularities", "granularities_*.csv", granularities),
    Plot("layerdrop", "layerdrop_*.csv", layerdrop),
    Plot("sortednet", "sortednet_*.csv", sortednet),
    Plot("router_tuning", "router_tuning_*.csv", routers),
    Plot("router_signal", "router_signal_*.csv", router_signal),
    Plot("search", "search_*.csv", search),
    Plot("universal", "universal_*.csv", universal),
    Plot("speculative", "speculative.csv", speculative),
    Plot("ordering", "convert_minilm_one_shot.csv", ordering, together=True),
    Plot("distilled", "convert_minilm_distilled.csv", distilled, together=True),
    Plot("quantization", "quantization_*.csv", quantization),
    Plot("decoder_precision", "decoder_precision.csv", decoder_precision),
    Plot("joint_precision", "joint_precision_*.csv", joint_precision),
)


def draw_all(results: Path, output: Path, names: Sequence[str] = ()) -> list[Path]:
    """Draw the plots of these names, or all, from the CSVs that are there; return the images."""
    written = []
    for plot in PLOTS:
        for name, paths in plot.jobs(results) if not names or plot.name in names else ():
            data = name.removeprefix(f"{plot.name}_")
            save(plot.figure(read(paths), data), output / f"{name}.png")
            written.append(output / f"{name}.png")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(plot.name for plot in PLOTS)}")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    unknown = set(args.names) - {plot.name for plot in PLOTS}
    if unknown:
        parser.error(f"there is no plot {', '.join(sorted(unknown))}")
    for path in draw_all(args.results, args.output, args.names):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
