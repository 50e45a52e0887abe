"""``python3 -m runtime verify|bench|run|profile|build BUNDLE``: what a bundle can do where nothing is installed."""

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
from .profile import ProfileReport, profile
from .run import RunReport, run
from .verify import VerifyReport, verify

Report = VerifyReport | BenchReport | ComparisonReport | RunReport | ProfileReport | BuildReport


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
            subnets=options.subnet or (),
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
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("past", "warmup", "rounds", "backend")}
    settings |= {"threads": options.threads or 1, "spinning": not options.no_spinning}
    if options.command == "profile":
        sizes = {"batches": options.batch or [1], "sequences": options.sequence}
        return profile(options.bundles or [Path()], options.output, **sizes, **settings)
    settings |= {"batch": options.batch, "sequence": options.sequence}
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
            + "".join(f"\n  {name}: no engine is built" for name in report.not_built)
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
    if isinstance(report, ProfileReport):
        return "\n".join(_describe_table(one) for one in (report, *report.others))
    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items())
    where = f"threads {report.threads}" if report.backend == ONNXRUNTIME else report.backend
    name = f"{report.bundle} {report.subnet}" if report.subnet else report.bundle
    return (
        f"{name}: median {report.median_ms:.3f} ms, p10 {report.p10_ms:.3f}, p90 {report.p90_ms:.3f}, "
        f"p99 {report.p99_ms:.3f} ({sizes}, {where}, {report.rounds} rounds)"
    )


def _describe_table(report: ProfileReport) -> str:
    table = report.table
    lines = []
    for one in table.measured:
        sizes = ", ".join(f"{name} {size}" for name, size in one.sizes.items())
        energy = "" if one.energy_mj is None else f", {one.energy_mj:.3f} mJ"
        spread = f"p10 {one.p10_ms:.3f}, p90 {one.p90_ms:.3f}"
        lines.append(f"{one.name} ({sizes}): median {one.median_ms:.3f} ms, {spread}{energy}")
    degrees = ", ".join(f"{zone} {start:g} to {end:g}" for zone, (start, end) in table.temperature_c.items())
    power = "not readable" if table.power is None else " + ".join(table.power["rails"])
    lines.append(
        f"{report.output_file}: {table.device['name']}, threads {table.threads}, {table.rounds} rounds; "
        f"degrees Celsius: {degrees or 'not readable'}; power: {power}."
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m runtime", description="Verifies, measures and runs a bundle.")
    commands = parser.add_subparsers(dest="command", required=True)
    printing = argparse.ArgumentParser(add_help=False)
    printing.add_argument("--json", action="store_true", help="print JSON")
    running = argparse.ArgumentParser(add_help=False, parents=[printing])
    running.add_argument("--backend", choices=BACKENDS, help="default: tensorrt where engines were built")
    running.add_argument("--threads", type=int, help="threads of one operator (default: all CPUs; bench, profile: 1)")
    one_bundle = argparse.ArgumentParser(add_help=False)
    one_bundle.add_argument("bundle", type=Path, nargs="?", default=Path(), help="folder of the bundle (default: .)")
    common = argparse.ArgumentParser(add_help=False, parents=[running, one_bundle])
    timing = argparse.ArgumentParser(add_help=False, parents=[running])
    timing.add_argument("--past", type=int, default=0, help="tokens that a decoder has cached (default: 0)")
    timing.add_argument("--warmup", type=int, default=5, help="rounds that are not counted")
    timing.add_argument("--rounds", type=int, default=50)
    timing.add_argument("--no-spinning", action="store_true", help="threads that wait for work sleep at once")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--subnet", metavar="NAME", help="one subnet of a bundle that has several")
    commands.add_parser("verify", parents=[common], help="check the files, then the outputs on the parity samples")
    latency = commands.add_parser("bench", parents=[timing, one_bundle, one], help="measure the latency")
    latency.add_argument("--batch", type=int, default=1)
    latency.add_argument("--sequence", type=int, help="tokens of a text (default: 128, or what the model takes)")
    latency.add_argument("--against", type=Path, metavar="BUNDLE", help="another bundle to take turns with")
    table = commands.add_parser("profile", parents=[timing], help="measure the latency table of this device")
    table.add_argument("bundles", type=Path, nargs="*", help="bundles of subnets of one model (default: .)")
    table.add_argument("-o", "--output", type=Path, required=True, help=".json to write")
    table.add_argument("--batch", type=int, action="append", help="batch size; repeatable (default: 1)")
    table.add_argument("--sequence", type=int, action="append", help="tokens of a text; repeatable (default: 128)")
    inference = commands.add_parser("run", parents=[common, one], help="run the model on arrays or texts")
    inference.add_argument(
        "--input", type=Path, required=True, help=".npz with the inputs, .npy with the first one, or .txt with texts"
    )
    inference.add_argument("--deadline", metavar="TIME", help="the best subnet that takes at most so long, such as 8ms")
    inference.add_argument("--max-new-tokens", type=int, metavar="N", help="decoders: continue the inputs by N tokens")
    inference.add_argument("-o", "--output", type=Path, required=True, help=".npz to write")
    engines = commands.add_parser(
        "build", parents=[printing, one_bundle], help="build and verify TensorRT engines on this device"
    )
    engines.add_argument("--workspace", metavar="SIZE", help="scratch memory of one kernel: 512MiB (default: no limit)")
    engines.add_argument(
        "--strip", action="store_true", help="take the weights from the bundle when an engine is loaded"
    )
    engines.add_argument("--force", action="store_true", help="build engines that are there already")
    engines.add_argument(
        "--subnet", metavar="NAME", action="append", help="only this one of a bundle with several; repeatable"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
