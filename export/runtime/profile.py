"""Measures the latency table of this device: how long subnets take, and where it can be read, the energy they need."""

from __future__ import annotations

import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .bench import check_rounds, make_inputs, take_turns
from .engine import write_whole
from .errors import BundleError
from .manifest import ELASTIC, Manifest, Member
from .members import Session
from .sensors import PowerMeter, device_name, find_power_meter, temperatures
from .session import Array, Bundle

TABLE_FORMAT = 1
ENERGY_S = 1.0
"""Seconds over which the energy of one subnet is measured in one round."""
ENERGY_ROUNDS = 3


@dataclass(frozen=True)
class Measurement:
    """One subnet at one set of input sizes."""

    name: str
    subnet: dict[str, Any] | None
    """As in the manifest; None for a model that was not cut from a universal one."""
    sizes: dict[str, int]
    """The sizes of the free dimensions, such as batch and sequence."""
    inputs: dict[str, list[int]]
    """The shape of every input."""
    median_ms: float
    p10_ms: float
    p90_ms: float
    energy_mj: float | None = None
    """What the device takes during one inference, its idle power included; None where power cannot be read."""


@dataclass(frozen=True)
class LatencyTable:
    """The latency table of one device, as ``elastic search --table`` reads it."""

    format_version: int
    device: dict[str, Any]
    model_type: str
    precision: str
    threads: int
    spinning: bool
    warmup: int
    rounds: int
    temperature_c: dict[str, list[float]]
    """Of each thermal zone: before, and after."""
    power: dict[str, Any] | None
    """The rails that were added up, and the watts that the device takes when it does nothing."""
    measured: tuple[Measurement, ...]


@dataclass(frozen=True)
class ProfileReport:
    """Where the table is, and what is in it."""

    output_file: str
    table: LatencyTable
    others: tuple[ProfileReport, ...] = ()
    """Of bundles of several precisions, which took turns: the tables of the other precisions."""


@dataclass(frozen=True)
class _Contestant:
    name: str
    subnet: dict[str, Any] | None
    inputs: dict[str, Array]
    sizes: dict[str, int]
    run: Callable[[], Any]


def profile(
    folders: Sequence[Path],
    output_file: Path,
    *,
    batches: Sequence[int] = (1,),
    sequences: Sequence[int] | None = None,
    past: int = 0,
    threads: int = 1,
    spinning: bool = True,
    warmup: int = 5,
    rounds: int = 50,
    backend: str | None = None,
    root: Path = Path("/"),
) -> ProfileReport:
    """Measure every subnet of some bundles, in turns, and write the latency table of this device.

    Bundles of several precisions take turns too, so that what disturbs the device disturbs all alike; each precision
    gets a table of its own, ``table-int8.json`` where the file is to be ``table.json``.

    Args:
        folders: bundles of one model; each holds one subnet, or several.
        output_file: the ``.json`` to write.
        batches: batch sizes to measure at.
        sequences: lengths of texts to measure at; by default 128, or as many as the model takes.
        past: tokens that a decoder has cached.
        threads: of one operator.
        spinning: whether threads wait actively for work.
        warmup: rounds that are not counted.
        rounds: rounds that are counted.
        root: where ``/proc`` and ``/sys`` are.

    Raises:
        BundleError: if a bundle cannot be run at these sizes, the bundles do not belong into one table, or the file
            is there already.
    """
    if output_file.suffix != ".json":
        raise BundleError(f"a latency table is written as .json, not as '{output_file.name}'.")
    check_rounds(warmup, rounds)
    sessions = [Session.open(folder, threads=threads, spinning=spinning, backend=backend) for folder in folders]
    bundles = [named for session in sessions for named in _subnets(session)]
    _check_alike([bundle for _, bundle in bundles])
    output_files = _output_files(output_file, [bundle for _, bundle in bundles])
    meter = find_power_meter(root)
    before = temperatures(root)
    idle_w = None if meter is None else _idle_watts(meter)
    measured: dict[str, list[Measurement]] = {precision: [] for precision in output_files}
    for batch, sequence in itertools.product(batches, sequences or (None,)):
        contestants = [_contestant(name, bundle, batch, sequence, past) for name, bundle in bundles]
        milliseconds = take_turns([one.run for one in contestants], warmup=warmup, rounds=rounds)
        energies = [None] * len(contestants) if meter is None else _energies(contestants, meter)
        for (_, bundle), one, column, energy in zip(bundles, contestants, milliseconds.T, energies, strict=True):
            p10, median, p90 = (round(float(p), 6) for p in np.percentile(column, (10, 50, 90)))
            shapes = {name: list(array.shape) for name, array in one.inputs.items()}
            measured[bundle.manifest.parity.precision].append(
                Measurement(one.name, one.subnet, one.sizes, shapes, median, p10, p90, energy)
            )
    after = temperatures(root)
    common = LatencyTable(
        format_version=TABLE_FORMAT,
        device={
            "name": device_name(root),
            "machine": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "cpus": os.cpu_count() or 1,
            "python": platform.python_version(),
            "runtime": sessions[0].backend.version,
        },
        model_type=bundles[0][1].manifest.model_type,
        precision="",
        threads=threads,
        spinning=spinning,
        warmup=warmup,
        rounds=rounds,
        temperature_c={name: [value, after[name]] for name, value in before.items() if name in after},
        power=None if meter is None else {"rails": list(meter.rails), "idle_w": idle_w},
        measured=(),
    )
    first, *others = [
        ProfileReport(str(path), replace(common, precision=precision, measured=tuple(measured[precision])))
        for precision, path in output_files.items()
    ]
    for report in (first, *others):
        text = json.dumps(asdict(report.table), indent=1, allow_nan=False) + "\n"
        write_whole(Path(report.output_file), text.encode())
    return replace(first, others=tuple(others))


def _output_files(output_file: Path, bundles: Sequence[Bundle]) -> dict[str, Path]:
    """Return the file of each precision.

    Raises:
        BundleError: if one is there already.
    """
    precisions = list(dict.fromkeys(bundle.manifest.parity.precision for bundle in bundles))
    files = {precision: output_file.with_stem(f"{output_file.stem}-{precision}") for precision in precisions}
    if len(precisions) == 1:
        files = {precisions[0]: output_file}
    for path in files.values():
        if os.path.lexists(path):
            raise BundleError(f"'{path}' is there already; choose another output file.")
    return files


def _subnets(session: Session) -> list[tuple[str, Bundle]]:
    """Return every subnet of a bundle; of an elastic graph also those that differ from the largest in one sub-layer."""
    folder = session.folder.resolve().name
    found = [(folder if name is None else f"{folder} {name}", session.bundle(name)) for name in session.names]
    largest = found[0][1]
    for name, member in single_changes(session.manifest):
        values = {key: np.array(value, dtype=largest.controls[key].dtype) for key, value in member.controls.items()}
        controls = {key: value.reshape(largest.controls[key].shape) for key, value in values.items()}
        manifest = replace(largest.manifest, subnet=member.subnet)
        found.append((f"{folder} {name}", replace(largest, manifest=manifest, controls=controls)))
    return found


def single_changes(manifest: Manifest) -> list[tuple[str, Member]]:
    """Return the subnets of an elastic graph that are the largest but for one sub-layer, with the controls for them.

    What a value of a control means is read from the members: the width or the heads that they have with it.
    """
    if manifest.kind != ELASTIC:
        return []
    largest = manifest.members[0]
    known = {json.dumps(member.subnet, sort_keys=True) for member in manifest.members}
    found = []
    for control, axis in (("ffn_blocks", "ffn"), ("attention_on", "heads")):
        meanings: dict[Any, int] = {}
        for member in manifest.members:
            meanings |= dict(zip(member.controls.get(control, ()), member.subnet[axis], strict=False))
        for value, width in sorted(meanings.items(), reverse=True):
            for layer, now in enumerate(largest.controls.get(control, ())):
                if value == now:
                    continue
                settings, choices = list(largest.controls[control]), list(largest.subnet[axis])
                settings[layer], choices[layer] = value, width
                subnet = {**largest.subnet, axis: choices}
                changed = replace(largest, subnet=subnet, controls={**largest.controls, control: settings})
                if json.dumps(subnet, sort_keys=True) not in known:
                    found.append((f"{axis} {width} in layer {layer}", changed))
    return found


def _check_alike(bundles: Sequence[Bundle]) -> None:
    """Check that the bundles are subnets of one model, as far as manifests say."""
    if not bundles:
        raise BundleError("give at least one bundle to measure.")
    first = bundles[0]
    for bundle in bundles[1:]:
        if bundle.manifest.model_type != first.manifest.model_type:
            raise BundleError(
                f"'{bundle.folder}' has the model type {bundle.manifest.model_type}, and '{first.folder}' "
                f"{first.manifest.model_type}; measure them into tables of their own."
            )


def _contestant(name: str, bundle: Bundle, batch: int, sequence: int | None, past: int) -> _Contestant:
    inputs = make_inputs(bundle, batch, sequence, past)
    return _Contestant(name, bundle.manifest.subnet, inputs, bundle.sizes(inputs), partial(bundle.run, inputs))


def _idle_watts(meter: PowerMeter) -> float | None:
    with meter.measure() as energy:
        time.sleep(ENERGY_S)
    return None if energy.joules is None else energy.joules / energy.seconds


def _energies(contestants: Sequence[_Contestant], meter: PowerMeter) -> list[float | None]:
    """Return the millijoules of one inference of each; they take turns, for a second each."""
    readings: list[list[float | None]] = [[] for _ in contestants]
    for number in range(ENERGY_ROUNDS):
        turn = list(range(len(contestants)))
        for index in turn if number % 2 == 0 else reversed(turn):
            count, run = 0, contestants[index].run
            with meter.measure() as energy:
                end = time.perf_counter() + ENERGY_S
                while time.perf_counter() < end:
                    run()
                    count += 1
            readings[index].append(None if energy.joules is None else 1000 * energy.joules / count)
    return [None if None in one else float(np.median(np.array(one, dtype=float))) for one in readings]
