"""`elastic plan`: what subnets of a configuration would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic.cli.options import (
    Flops,
    InputShape,
    Json,
    Macs,
    Memory,
    Params,
    SubnetOption,
    read_budget,
    read_input_shape,
    read_space_option,
    read_subnet_option,
)
from elastic.cli.output import note, print_json, print_table, reported
from elastic.errors import BudgetError, CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from elastic.cost import Cost
    from elastic.space import SearchSpace, Subnet

_NUM_ROWS = 24
_DEFAULT_SPACE = {"ffn": (0.25, 0.5, 0.75, 1.0)}


@reported
def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A configuration: config.json, its folder, or a name on the Hub.")
    ],
    space: Annotated[
        str | None,
        typer.Option(
            help="Choices of each axis: '{ffn: [0.5, 1.0], layers: [40, 60, 80]}', or a file that says so. "
            "Default: a universal model's own, else a quarter to all of the FFN width."
        ),
    ] = None,
    flops: Flops = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    subnet: SubnetOption = None,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Show what the subnets of a model of any size would cost, from its configuration alone: no weights are read."""
    budgeted = bool(flops or macs or params or memory)
    if subnet and (budgeted or space):
        raise BudgetError("give either --subnet, or a space and a budget.")
    chosen = read_subnet_option(subnet) if subnet else None
    budget = read_budget(flops, macs, params, memory) if budgeted else None
    config, given_space, shapes = _read(model)
    from elastic.cost import CostModel, format_quantity
    from elastic.cost.plan import class_of, make_plan
    from elastic.families import get_family
    from elastic.space import SearchSpace

    family = get_family(config)
    shapes = read_input_shape(input_shape, shapes) or shapes
    about = f"{family.model_type} for {', '.join(f'{n} {_by(shape)}' for n, shape in shapes.items())}"
    if chosen:
        rows = [(chosen, CostModel(class_of(config), config, shapes).cost(chosen))]
        title, counts = f"A subnet of {about}", {}
    else:
        wanted = read_space_option(space) if space else given_space or SearchSpace(**_DEFAULT_SPACE)
        planned = make_plan(class_of(config), config, wanted, shapes, budget)
        rows = list(planned.subnets)
        counts = {"num_subnets": planned.space.num_subnets, "num_uniform": planned.num_uniform}
        title = f"{_many(planned.space.num_subnets)} subnets of {about}, {planned.num_uniform:,} of them uniform"
    if as_json:
        print_json({"family": family.model_type, **counts, "subnets": [_json(subnet, cost) for subnet, cost in rows]})
        return
    shown = _spread(rows)
    print_table([_row(subnet, cost, format_quantity) for subnet, cost in shown], title=title)
    if len(shown) < len(rows):
        note(f"{len(shown)} of {len(rows)} are shown; --json prints all, a budget such as --params 50% fewer.")


def _read(model: str) -> tuple[PreTrainedConfig, SearchSpace | None, dict[str, tuple[int, ...]]]:
    """Return the configuration, and where it is a universal model's, space and input shapes."""
    path = Path(model).expanduser()
    looks_like_path = path.exists() or model.startswith((".", "/", "~")) or model.endswith(".json")
    if looks_like_path and not path.exists():
        raise CheckpointError(f"there is no {model}; name a config.json, its folder, or a model on the Hub.")
    from transformers import AutoConfig

    from elastic.families import input_shapes

    try:
        config = AutoConfig.from_pretrained(str(path) if looks_like_path else model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = "" if path.exists() else ", which is nothing that is here,"
        raise CheckpointError(f"the configuration of '{model}'{where} cannot be read: {error}") from None
    record_path = path / "elastic.json"
    if path.is_dir() and record_path.is_file():
        from elastic.record import read_record
        from elastic.space import SearchSpace

        record = read_record(path)
        if record.kind == "universal":
            shapes = {name: tuple(shape) for name, shape in record.input_shapes.items()}
            return config, SearchSpace.from_dict(record.space), shapes
    return config, None, input_shapes(config)


def _json(subnet: Subnet, cost: Cost) -> dict[str, Any]:
    from elastic.cost.plan import weight_bytes

    return {"subnet": subnet.to_dict(), "cost": cost.to_dict(), "weight_bytes_as": weight_bytes(cost)}


def _row(subnet: Subnet, cost: Cost, as_text: Any) -> dict[str, str]:
    from elastic.cost.plan import weight_bytes

    return {
        "subnet": subnet.describe(),
        "FLOPs": as_text(cost.flops),
        "parameters": as_text(cost.params),
        **{f"{name} (bytes)": as_text(size) for name, size in weight_bytes(cost).items()},
        "activations (bytes)": as_text(cost.activation_bytes),
    }


def _spread(rows: list[Any]) -> list[Any]:
    """Return at most so many rows as one sees at once, the first and the last among them."""
    if len(rows) <= _NUM_ROWS:
        return rows
    return [rows[i * (len(rows) - 1) // (_NUM_ROWS - 1)] for i in range(_NUM_ROWS)]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _many(number: int) -> str:
    """Return a number as people read it, be it one of a hundred digits."""
    return f"{number:,}" if number < 10**12 else f"10^{len(str(number)) - 1}"
