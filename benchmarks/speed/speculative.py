"""Speculative decoding by nested widths: accepted tokens, and seconds against greedy decoding without drafts.

The drafts are subnets of a MatFormer Llama trained on the standard library's sources, and the prompts its validation
text. Drafts on the target's cache, and extracted ones as `assistant_model`, are compared with generate and
with a plain greedy loop, as medians of ratios over alternating rounds.

    elastic train recipes/matformer_llama_stdlib.yaml -o universal
    python benchmarks/speed/speculative.py universal -o benchmarks/results/speculative.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import interleaved, median_ratio, write_csv

from elastic import extract, speculative_generate
from elastic.cost import DecoderCostModel, Phase
from elastic.generation import Speculation
from elastic.pipeline import Universal
from elastic.space import Subnet

FRACTIONS = (0.125, 0.25, 0.5)
Texts = list[torch.Tensor]


def greedy_loop(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    cache, text, read = DynamicCache(config=model.config), prompt, prompt
    with torch.no_grad():
        for _ in range(new_tokens):
            mask = torch.ones_like(text)
            logits = model(input_ids=read, attention_mask=mask, past_key_values=cache, logits_to_keep=1).logits
            read = logits[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, read], dim=1)
    return text


def assistant_of(model: PreTrainedModel, draft: Subnet, num_draft: int) -> PreTrainedModel:
    """Return the extracted draft, with as many tokens a draft as on the shared cache."""
    assistant = extract(model, draft)
    settings = assistant.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = num_draft, "constant"
    settings.assistant_confidence_threshold = 0.0
    return assistant


def count_passes(model: PreTrainedModel, run: Callable[[], object]) -> int:
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    run()
    hook.remove()
    return len(passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("universal", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--num-draft", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    universal = Universal.open(args.universal)
    model, space = universal.model.eval(), universal.elastic.resolved
    model.generation_config.eos_token_id = None
    # Spread over the whole text.
    data = universal.task.datasets["validation"]
    step = len(data) // args.prompts
    prompts = [
        torch.as_tensor(data[index * step]["input_ids"])[None, : args.prompt_tokens] for index in range(args.prompts)
    ]

    def generate(**options: object) -> Texts:
        return [
            model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                           max_new_tokens=args.new_tokens, **options)
            for prompt in prompts
        ]  # fmt: skip

    def speculate(draft: Subnet) -> list[Speculation]:
        limits = {"max_new_tokens": args.new_tokens, "num_draft": args.num_draft}
        return [speculative_generate(model, draft, prompt, **limits) for prompt in prompts]

    def shared(draft: Subnet) -> Texts:
        return [result.sequences for result in speculate(draft)]

    drafts = {fraction: space.granularity({"ffn": fraction}) for fraction in FRACTIONS}
    assistants = {fraction: assistant_of(model, draft, args.num_draft) for fraction, draft in drafts.items()}
    contestants: dict[str, Callable[[], Texts]] = {
        "generate": generate,
        "loop": lambda: [greedy_loop(model, prompt, args.new_tokens) for prompt in prompts],
    }
    for fraction in FRACTIONS:
        contestants[f"shared {fraction}"] = lambda draft=drafts[fraction]: shared(draft)
        contestants[f"assistant {fraction}"] = lambda small=assistants[fraction]: generate(assistant_model=small)

    expected = generate()
    decode = DecoderCostModel(type(model), model.config, Phase("decode", args.prompt_tokens))
    largest = decode.cost(space.largest).flops
    rows = []
    for fraction in FRACTIONS:
        results, new = speculate(drafts[fraction]), args.new_tokens * len(prompts)
        passes = count_passes(model, contestants[f"assistant {fraction}"])
        accepted = [count for result in results for count in result.accepted]
        found = {
            "shared": (sum(result.target_passes for result in results), statistics.mean(accepted)),
            # Every pass of assisted generation says one token more than it accepts.
            "assistant": (passes, (new - passes) / passes),
        }
        for kind, (total, accepted_per_draft) in found.items():
            same = [torch.equal(*pair) for pair in zip(contestants[f"{kind} {fraction}"](), expected, strict=True)]
            rows.append({
                "draft_ffn": fraction,
                "cache": "shared" if kind == "shared" else "own (assistant_model)",
                "draft_flops / target_flops": round(decode.cost(drafts[fraction]).flops / largest, 3),
                "identical_texts": f"{sum(same)} of {len(same)}",
                "accepted_per_draft": round(accepted_per_draft, 3),
                "target_passes_per_token": round(total / new, 3),
            })  # fmt: skip
    seconds = interleaved(contestants, rounds=args.rounds, warmup=1)
    for row, name in zip(rows, list(contestants)[2:], strict=True):
        row["time / generate"] = round(median_ratio(seconds, name, "generate"), 3)
        row["time / plain loop"] = round(median_ratio(seconds, name, "loop"), 3)
        row["num_draft"] = args.num_draft
        row["training_steps"] = universal.recipe.training.arguments["max_steps"]
    write_csv(args.output, rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
