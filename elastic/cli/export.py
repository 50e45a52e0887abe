"""`elastic export`: a checkpoint becomes a bundle for a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Candidates, Json, Output, read_subnet_option
from elastic.cli.output import note, print_json, print_table, progress, reported
from elastic.errors import ElasticError, did_you_mean

TARGETS = ("onnx", "family", "elastic-onnx")


@reported
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A checkpoint: extracted, stock, or an embedder. Family, elastic-onnx: universal."
        ),
    ],
    output: Output,
    to: Annotated[
        str, typer.Option("--to", help="onnx; family (several subnets); or elastic-onnx (one graph for many).")
    ] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, or int8 (for CPUs).")] = "fp32",
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embedders: return only so many leading dimensions.")
    ] = None,
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            "--subnet", metavar="JSON", help="Family: a subnet of it, as a JSON file or the JSON itself; repeatable."
        ),
    ] = None,
    flops: Annotated[
        list[str] | None,
        typer.Option(help="Family: the best subnet within so many FLOPs (50%, 2G) is one of it; repeatable."),
    ] = None,
    candidates: Candidates = 48,
    unmeasured: Annotated[
        bool, typer.Option("--unmeasured", help="Family, elastic-onnx: do not measure the quality of subnets.")
    ] = False,
    routed: Annotated[bool, typer.Option("--routed", help="elastic-onnx: with the model's routers inside.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.folder import check_output

    check_output(output)
    if to == "family":
        if precision != "fp32" or embedding_dim is not None:
            raise ElasticError("a family is of fp32, and its subnets say their embedding_dim; leave the options out.")
        _export_family(folder, output, subnet or [], flops or [], candidates, not unmeasured, as_json)
        return
    if to == "elastic-onnx":
        if precision != "fp32" or embedding_dim is not None or subnet or flops:
            raise ElasticError("an elastic graph is of fp32 and has the model's granularities; leave the options out.")
        _export_elastic(folder, output, routed, not unmeasured, as_json)
        return
    if routed:
        raise ElasticError("--routed is for --to elastic-onnx.")
    if subnet or flops or unmeasured:
        raise ElasticError(f"--subnet, --flops and --unmeasured are for --to family; {to} exports what is in {folder}.")
    from elastic.export import export_onnx, read_source

    source = read_source(folder, embedding_dim=embedding_dim)
    report = export_onnx(source.model, output, precision=precision, **source.details)
    if as_json:
        print_json(
            {
                "output": str(output),
                "max_abs_diff": report.max_abs_diff,
                "tolerance": report.tolerance,
                "quality": report.manifest.quality,
            }
        )
        return
    typer.echo(f"Wrote {output}: ONNX and PyTorch differ by {report.max_abs_diff:.1e} at most.")
    if report.similarity is not None:
        typer.echo(
            f"Cosine of int8 outputs to float32: {report.similarity.mean:.4f} (lowest {report.similarity.min:.4f})."
        )
    note(f"Next: elastic verify {output}; elastic bench {output}")


def _export_family(
    folder: Path,
    output: Path,
    subnets: Sequence[str],
    flops: Sequence[str],
    candidates: int,
    measured: bool,
    as_json: bool,
) -> None:
    named = {_name(text, number): read_subnet_option(text) for number, text in enumerate(subnets, 1)}
    if len(named) < len(subnets):
        raise ElasticError("two subnets have the same name, which is that of their file; rename one.")
    from elastic.cost import Budget, format_quantity
    from elastic.export import NamedSubnet, export_family, read_universal
    from elastic.pipeline import Universal, choose_subnets

    budgets = {f"flops-{text.strip().rstrip('%')}": Budget(flops=text) for text in flops}
    universal = Universal.open(folder)
    with progress("Measuring candidates") as on_progress:
        chosen = choose_subnets(
            universal, named, budgets, num_candidates=candidates, measured=measured, on_progress=on_progress
        )
    preprocess = universal.task.preprocess if measured and universal.record.recipe else None
    source = read_universal(folder, universal.model, preprocess)
    members = [
        NamedSubnet(one.name, one.subnet, one.cost.to_dict(), None if one.quality is None else one.quality.to_dict())
        for one in chosen
    ]
    report = export_family(source.model, members, output, wrap=source.wrap, **source.details)
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
    note(f"Next: elastic verify {output}; elastic bench {output}; elastic run {output} --subnet {members[-1].name} ...")


def _export_elastic(folder: Path, output: Path, routed: bool, measured: bool, as_json: bool) -> None:
    from elastic.export import NamedSubnet, export_elastic, read_universal
    from elastic.pipeline import Universal, choose_subnets

    universal = Universal.open(folder)
    chosen = choose_subnets(universal, {}, {}, measured=measured)
    preprocess = universal.task.preprocess if measured and universal.record.recipe else None
    source = read_universal(folder, universal.model, preprocess)
    members = [
        NamedSubnet(one.name, one.subnet, one.cost.to_dict(), None if one.quality is None else one.quality.to_dict())
        for one in chosen
    ]
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
    note(f"Next: elastic verify {output}; elastic bench {output}; elastic run {output} --subnet {members[-1].name} ...")


def _name(subnet: str, number: int) -> str:
    """Return what a subnet is called: as its file, or by its number."""
    return f"subnet-{number}" if subnet.lstrip().startswith("{") else Path(subnet).stem
