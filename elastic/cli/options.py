"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic.errors import BudgetError, ElasticError, SpaceError, did_you_mean

if TYPE_CHECKING:
    from elastic.cost import Budget, LatencyTable, Phase
    from elastic.space import SearchSpace, Subnet

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Universal model: a folder that `elastic train` wrote.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder to write; it must not exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Flops = Annotated[str | None, typer.Option(help="At most so many FLOPs: 2G, 500M, 1.5e9, or 60% of the largest.")]
Macs = Annotated[str | None, typer.Option(help="At most so many multiply-adds (half of the FLOPs).")]
Params = Annotated[str | None, typer.Option(help="At most so many parameters: 10M, 60%.")]
Memory = Annotated[str | None, typer.Option(help="At most so much memory for weights and activations: 64MiB, 60%.")]
Latency = Annotated[
    str | None, typer.Option(help="At most so long for one inference: 8ms, or 60% of the largest; needs --table.")
]
Energy = Annotated[str | None, typer.Option(help="At most so much energy for one inference: 20mJ, 60%; needs --table.")]
Table = Annotated[
    Path | None, typer.Option(metavar="TABLE", help="Latency table that `elastic profile` wrote on the device.")
]
Tables = Annotated[
    list[Path] | None,
    typer.Option(
        "--table",
        metavar="TABLE",
        help="Latency table that `elastic profile` wrote on the device. Several, one for each precision: the precision "
        "is chosen too.",
    ),
]
Lowered = Annotated[
    int,
    typer.Option(
        "--lowered",
        min=1,
        help="With a table of another precision than fp32: how many subnets are exported and measured in their "
        "precision, at most.",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="Input for which costs are computed: 1x128, or 1x3x32x32. Default: as trained."),
]
PhaseOption = Annotated[
    str | None,
    typer.Option("--phase", metavar="PHASE", help="Costs of a decoder with its cache: prefill, or decode (one token)."),
]
Context = Annotated[
    int | None, typer.Option(help="With --phase: tokens of the prompt, or before the decoded one. Default: as trained.")
]
SubnetOption = Annotated[
    str | None, typer.Option("--subnet", metavar="JSON", help="A subnet: a JSON file, or the JSON itself.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; repeatable.")
]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="One of the recipe's variants.")]
Correct = Annotated[
    str | None,
    typer.Option(
        "--correct",
        metavar="METHOD",
        help="Make up for what is gone, without training, over 512 training examples: least_squares, or mean (biases).",
    ),
]
Within = Annotated[
    str | None,
    typer.Option(metavar="SPACE", help="Only these choices of the space, such as '{embedding_dim: [128]}'."),
]
Capacity = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Share of routed sub-layers that compute: 50%, or 0.5.")
]
MultipleOf = Annotated[
    str,
    typer.Option(
        metavar="N|TARGET",
        help="Only FFN widths and hidden sizes that are multiples of N, or of what suits cpu (16) or tensorrt (64).",
    ),
]
Uniform = Annotated[bool, typer.Option("--uniform", help="Only subnets that stock transformers can load.")]
SearchMethod = Annotated[
    str | None,
    typer.Option(
        "--method", help="predictor (default), heuristic, uniform, every-other, random or evolution.", metavar="METHOD"
    ),
]
Candidates = Annotated[int, typer.Option(min=1, help="How many subnets are measured at most.")]


def read_budget(
    flops: str | None,
    macs: str | None,
    params: str | None,
    memory: str | None,
    latency: str | None = None,
    energy: str | None = None,
    tables: Sequence[Path] | None = None,
) -> Budget:
    """Return the budget of the options.

    Raises:
        BudgetError: if none is given, one of latency or energy without a latency table, or several tables without one
            of these.
    """
    from elastic.cost import Budget

    if not (flops or macs or params or memory or latency or energy):
        raise BudgetError("no budget is given; add --flops 2G, or --macs, --params, --memory, --latency or --energy.")
    check_table(latency, energy, tables)
    if tables and len(tables) > 1 and not (latency or energy):
        raise BudgetError(
            f"{len(tables)} latency tables are given, and no budget depends on the precision; add --latency or "
            "--energy, or give one table."
        )
    return Budget(flops=flops, macs=macs, params=params, memory=memory, latency=latency, energy=energy)


def check_table(latency: str | None, energy: str | None, table: Path | Sequence[Path] | None) -> None:
    """Check that a budget of latency or energy comes with a latency table.

    Raises:
        BudgetError: if it does not.
    """
    for name, given in (("latency", latency), ("energy", energy)):
        if given and not table:
            raise BudgetError(
                f"--{name} {given} needs a latency table, which `elastic profile` measures on the device; add "
                "--table T.json."
            )


def read_table(path: Path | None) -> LatencyTable | None:
    """Read a latency table, if one is given.

    Raises:
        BudgetError: if the file is none.
    """
    if path is None:
        return None
    from elastic.cost import LatencyTable

    return LatencyTable.read(path)


def read_tables(paths: Sequence[Path] | None, memory: str | None) -> list[LatencyTable]:
    """Read latency tables of one device, one for each precision.

    Raises:
        BudgetError: if a file is none or of no known precision, they do not belong together, or memory is limited,
            which is predicted in float32 alone.
    """
    if not paths:
        return []
    from elastic.cost import LatencyTable, check_together

    tables = [LatencyTable.read(path) for path in paths]
    check_together(tables)
    for table in tables:
        if table.precision == "fp32":
            continue
        from elastic.export.precision.options import PRECISIONS

        if table.precision not in PRECISIONS:
            raise BudgetError(
                f"the latency table {table.path} is of the precision '{table.precision}'"
                f"{did_you_mean(table.precision, PRECISIONS)}"
            )
        if memory:
            raise BudgetError(
                f"--memory {memory} is of weights and activations in float32, and {table.path} is of "
                f"{table.precision}; limit --params instead."
            )
    return tables


def read_capacity(text: str) -> float:
    """Read ``50%`` or ``0.5``.

    Raises:
        BudgetError: if it is no share between 0 and 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= 1.0:
        raise BudgetError(f"'{text}' is not a capacity; write a share such as 50% or 0.5.")
    return share


def read_subnet_option(text: str) -> Subnet:
    """Read a subnet from a JSON file or from JSON text.

    Raises:
        SpaceError: if it is neither.
    """
    from elastic.space import read_subnet

    if text.lstrip().startswith("{"):
        return read_subnet(text)
    path = Path(text)
    if not path.is_file():
        raise SpaceError(f"there is no subnet file {text}.")
    return read_subnet(_read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpaceError(f"{path} is not UTF-8 text.") from None


def read_method(option: str, given: str | None, known: Sequence[str]) -> Any:
    """Return the method that an option names, or None.

    Raises:
        ElasticError: if there is no such method (suggests the right one).
    """
    if given is not None and given not in known:
        raise ElasticError(f"{option} {given}{did_you_mean(given, known)}")
    return given


def read_multiple_of(text: str) -> int:
    """Return of what widths are multiples: a number, or what suits a target.

    Raises:
        ElasticError: if it is neither.
    """
    from elastic.space import ALIGNMENTS

    number = ALIGNMENTS.get(text) or (int(text) if text.isdecimal() else 0)
    if not number:
        raise ElasticError(f"--multiple-of takes a whole number from 1, or {' or '.join(ALIGNMENTS)}, not '{text}'.")
    return number


def read_search_method(given: str | None, uniform: bool) -> Any:
    """Return the search method of the options ``--method`` and ``--uniform``.

    Raises:
        ElasticError: if there is no such method, or the two contradict each other.
    """
    from elastic.selection import METHODS

    if uniform and given not in (None, "uniform"):
        raise ElasticError(f"--uniform searches uniform subnets alone, and --method is {given}; give one of them.")
    return "uniform" if uniform else read_method("--method", given, METHODS) or "predictor"


def read_space_option(text: str) -> SearchSpace:
    """Read a search space from YAML or JSON, given as text or as a file.

    Raises:
        SpaceError: if it is neither, or an axis or choice is wrong.
    """
    import yaml

    from elastic.space import SearchSpace

    path = Path(text)
    if not text.lstrip().startswith("{"):
        if not path.is_file():
            raise SpaceError(f"there is no space file {text}; write the space itself as '{{ffn: [0.5, 1.0]}}'.")
        text = _read_text(path)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        data = None
    if isinstance(data, dict) and isinstance(data.get("space"), dict):
        data = data["space"]
    if not isinstance(data, dict):
        raise SpaceError(f"'{text}' is not a space; write it as '{{ffn: [0.5, 1.0], layers: [4, 6]}}'.")
    return SearchSpace.from_dict(data)


def read_input_shape(text: str | None, recorded: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]] | None:
    """Read ``1x128`` as the shape of the model's one input.

    Raises:
        BudgetError: if it is no shape, or has another number of dimensions.
    """
    if text is None:
        return None
    name, expected = next(iter(recorded.items()))
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts) or len(parts) != len(expected):
        shape = "x".join(map(str, expected))
        raise BudgetError(
            f"'{text}' is not an input shape of this model; write {len(expected)} numbers such as {shape}."
        )
    return {name: tuple(map(int, parts))}


def read_phase(
    phase: str | None, context: int | None, input_shape: str | None, recorded: Mapping[str, Sequence[int]]
) -> Phase | None:
    """Return the phase of the options ``--phase`` and ``--context``, if one is given.

    Raises:
        ElasticError: if there is no such phase, or the options contradict each other.
    """
    from elastic.cost import PHASES, Phase

    if phase is None:
        if context is not None:
            raise ElasticError(f"--context {context} belongs to a phase; add --phase prefill or --phase decode.")
        return None
    if input_shape is not None:
        raise ElasticError(f"give either --input-shape or --phase {phase} with --context, not both.")
    tokens = next(iter(recorded.values()))[-1] if context is None else context
    return Phase(read_method("--phase", phase, PHASES), tokens)
