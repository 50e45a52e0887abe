r"""What a router could know: how much each sequence gains by an attention, and how much of that its input tells.

    python benchmarks/quality/router_signal.py -o benchmarks/results/router_signal_decoder.csv

Of the decoder of `router_tuning.py`: the loss of second halves without the attention of a layer minus that with it, for
each sequence, and how much of its variance a ridge regression on the router's input explains, fitted on training data
and scored on validation data (by the best of four penalties, so rather too well). The router's input is the mean of
the attention's normalised input over the first half. A router is a linear map of it: where this explains nothing, the
best router is a static set.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from router_tuning import LENGTH, second_half_losses, skipping, trained_decoder
from transformers import PreTrainedModel

from elastic.nested import Routing, active, add_routers, evaluating, get_elastic, get_routers, routed
from measuring import write_csv

PENALTIES = (1e2, 1e3, 1e4, 1e5)


def losses(model: PreTrainedModel, blocks: torch.Tensor, skipped: tuple[int, ...] = ()) -> torch.Tensor:
    with active(model, skipping(model, skipped)):
        return second_half_losses(model, blocks)


def router_inputs(model: PreTrainedModel, blocks: torch.Tensor) -> list[torch.Tensor]:
    """Return what the router of each layer reads of every sequence: ``(sequences, hidden)``."""
    num_layers = get_elastic(model).dims.num_layers
    add_routers(model, Routing("attention", tuple(range(num_layers))))
    seen: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    for router, inputs in zip(get_routers(model).values(), seen, strict=True):
        router.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
    with torch.inference_mode(), evaluating(model), routed(model, dense=True):
        for ids in blocks[:, : LENGTH // 2].split(128):
            model(ids, attention_mask=torch.ones_like(ids))
    return [torch.cat(inputs) for inputs in seen]


def explained(
    train: tuple[torch.Tensor, torch.Tensor], validation: tuple[torch.Tensor, torch.Tensor], penalty: float
) -> float:
    """Return the share of the variance of gains that ridge regression explains on validation data.

    Their mean there is left out; negative where the prediction is worse than none.
    """
    (inputs, gains), (other_inputs, other_gains) = train, validation
    mean, deviation = inputs.mean(0), inputs.std(0)
    inputs, other_inputs = (inputs - mean) / deviation, (other_inputs - mean) / deviation
    ridge = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(ridge, inputs.T @ (gains - gains.mean()))
    predicted = other_inputs @ weights
    return float(1.0 - (other_gains - predicted).var() / other_gains.var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200, help="training of the decoder")
    parser.add_argument("--sequences", type=int, default=4000, help="to fit on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, blocks = trained_decoder(args.seed, args.steps)
    order = torch.randperm(len(blocks["train"]), generator=torch.Generator().manual_seed(args.seed))
    splits = (blocks["train"][order[: args.sequences]], blocks["validation"])
    inputs = [router_inputs(model, split) for split in splits]
    full = [losses(model, split) for split in splits]
    rows: list[dict[str, Any]] = []
    for layer in range(get_elastic(model).dims.num_layers):
        gains = [losses(model, split, (layer,)) - base for split, base in zip(splits, full, strict=True)]
        pairs = [(of[layer], gain) for of, gain in zip(inputs, gains, strict=True)]
        shares = [explained(pairs[0], pairs[1], penalty) for penalty in PENALTIES]
        rows.append({
            "model": "decoder", "seed": args.seed, "layer": layer, "mean_gain": round(float(gains[1].mean()), 4),
            "deviation": round(float(gains[1].std()), 4),
            "share_that_loses": round(float((gains[1] < 0).double().mean()), 3),
            "variance_explained": round(max(shares), 4), "sequences": args.sequences,
        })  # fmt: skip
        print(rows[-1], flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
