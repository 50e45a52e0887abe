"""One readable line for each thing that the Trainer logs, on standard error."""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingLog(TrainerCallback):
    """Prints the losses where there is no progress bar that does."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print a line such as ``step 100/1000  loss 0.52  learning_rate 0.0009``."""
        if not (args.disable_tqdm and state.is_world_process_zero) or not logs or "train_runtime" in logs:
            return
        hidden = ("_runtime", "_per_second", "_time", "epoch", "grad_norm")
        values = "  ".join(
            f"{name} {value:.4g}"
            for name, value in logs.items()
            if isinstance(value, (int, float)) and not name.endswith(hidden)
        )
        print(f"step {state.global_step}/{state.max_steps}  {values}", file=sys.stderr, flush=True)  # noqa: T201
