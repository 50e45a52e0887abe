"""What elasticity costs: training steps of a universal ViT against plain ones, and extracted against native models.

A step is a forward pass, a backward pass and AdamW, as ratios of medians over alternating rounds.

    python benchmarks/speed/elasticity.py -o benchmarks/results/elasticity.csv
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import interleaved, median_ratio, write_csv

from elastic import SearchSpace, active, extract, make_elastic
from elastic.nested import get_elastic

FRACTIONS = (0.125, 0.25, 0.5, 1.0)


def stepper(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # the Trainer's default

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    model = copy.deepcopy(model).eval()

    def run() -> None:
        with torch.inference_mode():
            model(**batch)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=384, help="384 is ViT-S; 6 of its 12 layers are timed")
    parser.add_argument("--image-size", type=int, default=112)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width = args.hidden_size
    config = ViTConfig(hidden_size=width, num_hidden_layers=6, num_attention_heads=width // 64,
                       intermediate_size=4 * width,
                       image_size=args.image_size, num_labels=10)  # fmt: skip
    batch = {
        "pixel_values": torch.randn(args.batch, 3, args.image_size, args.image_size),
        "labels": torch.randint(0, 10, (args.batch,)),
    }
    plain = ViTForImageClassification(config)
    universal = make_elastic(copy.deepcopy(plain), SearchSpace(ffn=list(FRACTIONS)))
    space = get_elastic(universal).resolved
    subnets = {fraction: space.granularity({"ffn": fraction}) for fraction in FRACTIONS}

    steps = {"plain": stepper(plain, batch)}
    universal_step = stepper(universal, batch)
    for fraction, subnet in subnets.items():

        def run(subnet: object = subnet) -> None:
            with active(universal, subnet):
                universal_step()

        steps[f"universal {fraction}"] = run
    seconds = interleaved(steps, rounds=args.rounds)
    rows = [
        {"what": f"{name} step / plain step", "ratio": median_ratio(seconds, name, "plain"), "target": ""}
        for name in list(steps)[1:]
    ]
    rows[-1]["target"] = "<= 1.03"
    rows.append(
        {
            "what": "mean of the four granularities / plain step",
            "ratio": statistics.mean(row["ratio"] for row in rows),
            "target": "<= 0.72",
        }
    )
    extracted = extract(universal, subnets[0.25])
    native = ViTForImageClassification(extracted.config)
    for kind, make in (("step", stepper), ("forward", forward)):
        pair = {"extracted": make(extracted, batch), "native": make(native, batch)}
        measured = interleaved(pair, rounds=2 * args.rounds)
        rows.append(
            {
                "what": f"extracted {kind} / native {kind}",
                "ratio": median_ratio(measured, "extracted", "native"),
                "target": "0.98 to 1.02",
            }
        )
    write_csv(args.output, rows)
    for row in rows:
        print(f"{row['what']}: {row['ratio']:.3f}  {row['target']}")


if __name__ == "__main__":
    main()
