"""``python3 -m runtime verify|bench|run|build BUNDLE``: what a bundle can do where nothing is installed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .backend import BACKENDS, ONNXRUNTIME
from .bench import BenchReport, ComparisonReport, bench, compare_latency, compare_subnets
from .build import BuildReport, build, read_size
from .deadline import read_milliseconds
from .engine import FOLDER
from .errors import BundleError
from .manifest import read_manifest
from .run import RunReport, run
from .verify import VerifyReport, verify

Report = VerifyReport | BenchReport | ComparisonReport | RunReport | BuildReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 if a check failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        report = _run_command(options)
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write((json.dumps(asdict(report)) if options.json else describe(report)) + "\n")
    return 0


def _run_command(options: argparse.Namespace) -> Report:
    if options.command == "build":
        return build(
            options.bundle,
            workspace=read_size(options.workspace) if options.workspace else None,
            stripped=options.strip,
            force=options.force,
            subnet=options.subnet,
            say=lambda text: sys.stderr.write(f"{text}\n"),
        )
    runs: dict[str, Any] = {"threads": options.threads, "backend": options.backend}
    if options.command == "verify":
        return verify(options.bundle, **runs)
    if options.command == "run":
        return run(
            options.bundle,
            options.input,
            options.output,
            max_new_tokens=options.max_new_tokens,
            subnet=options.subnet,
            deadline_ms=None if options.deadline is None else read_milliseconds(options.deadline),
            **runs,
        )
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in ("batch", "sequence", "past", "warmup", "rounds")
    }
    settings |= {"threads": options.threads or 1, "backend": options.backend}
    if options.against:
        return compare_latency([options.bundle, options.against], subnet=options.subnet, **settings)
    return bench_all(options.bundle, options.subnet, settings)


def bench_all(bundle: Path, subnet: str | None, settings: dict[str, Any]) -> BenchReport | ComparisonReport:
    """Measure one subnet if it is named, and otherwise all that a bundle has."""
    if subnet is None and read_manifest(bundle).members:
        return compare_subnets(bundle, **settings)
    return bench(bundle, subnet=subnet, **settings)


def describe(report: Report) -> str:
    """Return a report as text."""
    if isinstance(report, VerifyReport):
        subnets = "".join(f"\n  {name}: {difference:.2e}" for name, difference in report.subnets.items())
        return (
            f"{report.bundle}: {report.files} files are intact; largest difference {report.max_abs_diff:.2e} over "
            f"{report.samples} samples ({report.precision} allows {report.tolerance:g}; on {report.backend}).{subnets}"
        )
    if isinstance(report, BuildReport):
        engines = [
            f"{Path(report.bundle, FOLDER, one.file)}: {one.bytes / 1e6:.1f} MB, {one.seconds:.0f} s to build, largest "
            f"difference {one.max_abs_diff:.2e} over {one.samples} samples ({one.tolerance:g} is allowed)"
            for one in report.engines
        ]
        return "\n".join([*engines, f"{report.reused} of {len(engines)} were there already; {report.device}"])
    if isinstance(report, RunReport):
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in report.outputs.items())
        ran = f" by {report.subnet}" if report.subnet else ""
        return "\n".join([*report.texts, f"{report.output_file}: {shapes}{ran}"])
    if isinstance(report, ComparisonReport):
        pairs = zip(report.bundles, report.ratios, strict=True)
        return "\n".join(f"{describe(bundle)}; ratio {ratio:.3f}" for bundle, ratio in pairs)
    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items())
    where = f"threads {report.threads}" if report.backend == ONNXRUNTIME else report.backend
    name = f"{report.bundle} {report.subnet}" if report.subnet else report.bundle
    return (
        f"{name}: median {report.median_ms:.3f} ms, p10 {report.p10_ms:.3f}, p90 {report.p90_ms:.3f}, "
        f"p99 {report.p99_ms:.3f} ({sizes}, {where}, {report.rounds} rounds)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m runtime", description="Verifies, measures and runs a bundle.")
    commands = parser.add_subparsers(dest="command", required=True)
    given = argparse.ArgumentParser(add_help=False)
    given.add_argument("bundle", type=Path, nargs="?", default=Path(), help="the folder of the bundle (default: .)")
    given.add_argument("--json", action="store_true", help="print JSON")
    common = argparse.ArgumentParser(add_help=False, parents=[given])
    common.add_argument("--backend", choices=BACKENDS, help="default: tensorrt where engines were built")
    common.add_argument("--threads", type=int, help="threads of one operator (default: all CPUs; bench: 1)")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--subnet", metavar="NAME", help="one subnet of a bundle that has several")
    commands.add_parser("verify", parents=[common], help="check the files, then the outputs on the parity samples")
    latency = commands.add_parser("bench", parents=[common, one], help="measure the latency")
    latency.add_argument("--batch", type=int, default=1)
    latency.add_argument("--sequence", type=int, help="tokens of a text (default: 128, or what the model takes)")
    latency.add_argument("--past", type=int, default=0, help="tokens that a decoder has cached (default: 0)")
    latency.add_argument("--warmup", type=int, default=5, help="rounds that are not counted")
    latency.add_argument("--rounds", type=int, default=50)
    latency.add_argument("--against", type=Path, metavar="BUNDLE", help="another bundle to take turns with")
    inference = commands.add_parser("run", parents=[common, one], help="run the model on arrays or texts")
    inference.add_argument(
        "--input", type=Path, required=True, help=".npz with the inputs, .npy with the first one, or .txt with texts"
    )
    inference.add_argument("--deadline", metavar="TIME", help="the best subnet that takes at most so long, such as 8ms")
    inference.add_argument("--max-new-tokens", type=int, metavar="N", help="decoders: continue the inputs by N tokens")
    inference.add_argument("-o", "--output", type=Path, required=True, help=".npz to write")
    engines = commands.add_parser("build", parents=[given], help="build and verify TensorRT engines on this device")
    engines.add_argument("--workspace", metavar="SIZE", help="scratch memory of one kernel: 512MiB (default: no limit)")
    engines.add_argument(
        "--strip", action="store_true", help="take the weights from the bundle when an engine is loaded"
    )
    engines.add_argument("--force", action="store_true", help="build engines that are there already")
    engines.add_argument("--subnet", metavar="NAME", help="only this one of a bundle with several")
    return parser


if __name__ == "__main__":
    sys.exit(main())
