"""`elastic export`: a checkpoint becomes a bundle for a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from elastic.cli.options import Candidates, Json, Output, read_subnet_option
from elastic.cli.output import note, print_json, print_table, progress, reported
from elastic.errors import ElasticError, did_you_mean

TARGETS = ("onnx", "family", "tensorrt")


@reported
def export(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A checkpoint: extracted, stock, or an embedder. For family: universal."),
    ],
    output: Output,
    to: Annotated[
        str, typer.Option("--to", help="Target format: onnx, tensorrt, or family (several subnets).")
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
        bool, typer.Option("--unmeasured", help="Family: do not measure the quality of subnets.")
    ] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZES", help="TensorRT: batch=1,sequence=16:64:128 (min:opt:max); repeatable."),
    ] = None,
    trt_version: Annotated[
        str, typer.Option(metavar="VERSION", help="TensorRT: the oldest version that should read the graph.")
    ] = "10.3",
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a model repository for Triton as well, from the bundle.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, or for TensorRT, and prove it equal on ONNX Runtime."""
    if to not in TARGETS:
        raise ElasticError(f"unknown export target '{to}'{did_you_mean(to, TARGETS)}")
    from elastic.folder import check_output

    for path in filter(None, (output, triton)):
        check_output(path)
    if to == "family":
        if precision != "fp32" or embedding_dim is not None or profile:
            raise ElasticError(
                "a family is of fp32, has no profiles, and its subnets say their embedding_dim; leave the options out."
            )
        _export_family(folder, output, subnet or [], flops or [], candidates, not unmeasured, as_json)
        _write_triton(output, triton, as_json)
        return
    if profile and to != "tensorrt":
        raise ElasticError(f"profiles are for TensorRT, not for {to}; add --to tensorrt, or leave --profile out.")
    if subnet or flops or unmeasured:
        raise ElasticError(f"--subnet, --flops and --unmeasured are for --to family; {to} exports what is in {folder}.")
    from elastic.export import TensorRTTarget, export_onnx, read_source

    target = TensorRTTarget(tuple(profile or ()), trt_version) if to == "tensorrt" else None
    source = read_source(folder, embedding_dim=embedding_dim)
    report = export_onnx(source.model, output, precision=precision, target=target, **source.details)
    _write_triton(output, triton, as_json)
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
    for one in report.manifest.profiles:
        typer.echo(f"Profile {one}")
    there = f"on the device: cd {output.name}; python3 -m runtime build"
    note(f"Next: {there if target else f'elastic verify {output}; elastic bench {output}'}")


def _write_triton(bundle: Path, repository: Path | None, as_json: bool) -> None:
    if repository is None:
        return
    from elastic.export import write_triton

    names = write_triton(bundle, repository)
    if not as_json:
        typer.echo(f"Wrote {repository}, a model repository for Triton with {', '.join(names)}.")


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


def _name(subnet: str, number: int) -> str:
    """Return what a subnet is called: as its file, or by its number."""
    return f"subnet-{number}" if subnet.lstrip().startswith("{") else Path(subnet).stem
