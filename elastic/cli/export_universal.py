"""What `elastic export` does with a universal model: several of its subnets in one bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from elastic.cli.options import read_subnet_option
from elastic.cli.output import note, print_json, print_table, progress
from elastic.errors import ElasticError

if TYPE_CHECKING:
    from elastic.export import FamilySource, Manifest, NamedSubnet, TensorRTTarget
    from elastic.pipeline import Chosen, Universal


def family_of(
    folder: Path,
    output: Path,
    subnets: Sequence[str],
    flops: Sequence[str],
    candidates: int,
    measured: bool,
    as_json: bool,
    *,
    for_profiling: bool = False,
    precision: str = "fp32",
    target: TensorRTTarget | None = None,
) -> None:
    """Export subnets of a universal model as graphs over one file of weights, and say what came out."""
    named = {_name(text, number): read_subnet_option(text) for number, text in enumerate(subnets, 1)}
    if len(named) < len(subnets):
        raise ElasticError("two subnets have the same name, which is that of their file; rename one.")
    if for_profiling and (subnets or flops):
        raise ElasticError("--for-profiling chooses the subnets; leave --subnet and --flops out.")
    from elastic.cost import Budget, format_quantity, subnets_to_profile
    from elastic.export import export_family
    from elastic.pipeline import Universal, choose_subnets

    budgets = {f"flops-{text.strip().rstrip('%')}": Budget(flops=text) for text in flops}
    universal = Universal.open(folder)
    if for_profiling:
        named, measured = subnets_to_profile(universal.elastic.resolved), False
    with progress("Measuring candidates") as on_progress:
        chosen = choose_subnets(
            universal, named, budgets, num_candidates=candidates, measured=measured, on_progress=on_progress
        )
    source, members = _prepare(folder, universal, chosen, measured)
    report = export_family(
        source.model, members, output, precision=precision, target=target, wrap=source.wrap, **source.details
    )
    if as_json:
        print_json(
            {
                "output": str(output),
                "max_abs_diff": report.max_abs_diff,
                "tolerance": report.tolerance,
                "weight_bytes": report.weight_bytes,
                "unshared_bytes": report.unshared_bytes,
                "members": [{"name": m.name, "cost": m.cost, "quality": m.quality} for m in report.manifest.members],
            }
        )
        return
    print_table(
        [
            {
                "subnet": one.name,
                "is": one.subnet.describe(),
                "FLOPs": format_quantity(one.cost.flops),
                "quality": "-" if one.quality is None else f"{one.quality.metric} {one.quality.value:.4g}",
                "difference to PyTorch": f"{member.parity.max_abs_diff:.1e}",
            }
            for one, member in zip(chosen, report.manifest.members, strict=True)
        ],
        title=f"Family in {output}: weights {format_quantity(report.weight_bytes)} bytes, "
        f"{format_quantity(report.unshared_bytes)} if they were not shared",
    )
    for profile in report.manifest.profiles:
        typer.echo(f"Profile {profile}")
    if for_profiling or target:
        build = ["python3 -m runtime build"] if target else []
        sizes = _sizes(universal, report.manifest) if for_profiling else ""
        measure = f"python3 -m runtime profile{sizes} -o table.json" if for_profiling else "python3 -m runtime bench"
        note(f"Next, on the device: {'; '.join([f'cd {output.name}', *build, measure])}")
    else:
        _say_next(output, report.manifest)


def elastic_graph_of(folder: Path, output: Path, routed: bool, measured: bool, as_json: bool) -> None:
    """Export a universal model as one graph whose subnets are inputs, and say what came out."""
    from elastic.export import export_elastic
    from elastic.pipeline import Universal, choose_subnets

    universal = Universal.open(folder)
    chosen = choose_subnets(universal, {}, {}, measured=measured)
    source, members = _prepare(folder, universal, chosen, measured)
    report = export_elastic(source.whole, members, output, routed=routed, **source.details)
    if as_json:
        print_json(
            {
                "output": str(output),
                "max_abs_diff": report.max_abs_diff,
                "tolerance": report.tolerance,
                "subnets": {member.name: member.controls for member in report.manifest.members},
                "left_out": report.left_out,
            }
        )
        return
    typer.echo(
        f"Wrote {output}: ONNX and PyTorch differ by {report.max_abs_diff:.1e} at most, over "
        f"{len(report.manifest.members)} named subnets and {report.num_random} drawn at random."
    )
    for member in report.manifest.members:
        typer.echo(f"  {member.name}: " + "; ".join(f"{name} {values}" for name, values in member.controls.items()))
    for name, reason in report.left_out.items():
        note(f"'{name}' is left out: {reason}.")
    _say_next(output, report.manifest)


def _prepare(
    folder: Path, universal: Universal, chosen: Sequence[Chosen], measured: bool
) -> tuple[FamilySource, list[NamedSubnet]]:
    """Return what is exported of a universal model, and what the manifest says of its subnets."""
    from elastic.export import NamedSubnet, read_universal

    preprocess = universal.task.preprocess if measured and universal.record.recipe else None
    members = [
        NamedSubnet(one.name, one.subnet, one.cost.to_dict(), None if one.quality is None else one.quality.to_dict())
        for one in chosen
    ]
    return read_universal(folder, universal.model, preprocess), members


def _sizes(universal: Universal, manifest: Manifest) -> str:
    """Return the options of `profile` for the input sizes that costs are computed for."""
    shape = next(iter(universal.input_shapes.values()))
    sizes = {"batch": shape[0]} if shape[0] != 1 else {}
    if manifest.inputs[0].has_sequence:
        sizes["sequence"] = shape[1]
    return "".join(f" --{name} {size}" for name, size in sizes.items())


def _say_next(output: Path, manifest: Manifest) -> None:
    smallest = manifest.members[-1].name
    note(f"Next: elastic verify {output}; elastic bench {output}; elastic run {output} --subnet {smallest} ...")


def _name(subnet: str, number: int) -> str:
    """Return what a subnet is called: as its file, or by its number."""
    return f"subnet-{number}" if subnet.lstrip().startswith("{") else Path(subnet).stem
