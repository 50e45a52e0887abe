"""Trains a universal model: a `transformers.Trainer` whose every step runs the subnets of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from elastic.errors import ElasticError
from elastic.nested import active, get_elastic, resumed_from
from elastic.space import Subnet
from elastic.training.objectives import Objective, Returned, TaskLoss
from elastic.training.passes import SharedPass, exit_of, of_all_layers, shared_passes
from elastic.training.samplers import Sampler
from elastic.training.weights import Weights, even

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


Embed = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
EmbeddingLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From embeddings ``(batch, width)`` and labels to a scalar."""


@dataclass
class _Step:
    """A batch: the forward-backward pass that runs now, and what all of its passes share."""

    total_weight: float
    subnets: tuple[Subnet | None, ...] = ()
    """Read from the pass that runs now."""
    teacher: Returned | None = None


class ElasticMixin(_Base):
    """Makes any Trainer train a universal model; put it before the Trainer class.

    Each batch is run for every subnet that the sampler returns; each pass is a training step of the
    underlying Trainer (mixed precision, accumulation and backends included), its loss divided by
    their number. So the step's loss is their mean, and only one graph is alive at a time. Early exits
    and truncated embeddings of another subnet of the step are read from its pass (`shared_passes`).
    """

    def __init__(
        self,
        *args: Any,
        sampler: Sampler | None = None,
        subnet: Subnet | None = None,
        objective: Objective | None = None,
        teacher: PreTrainedModel | None = None,
        same_width_teacher: bool = False,
        embed: Embed | None = None,
        teacher_embed: Embed | None = None,
        embedding_loss: EmbeddingLoss | None = None,
        weights: Weights = even,
        regularise_largest_only: bool = False,
        granularities: Mapping[str, Subnet] | None = None,
        measure: Callable[[], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what the Trainer takes, and what follows.

        Args:
            sampler: which subnets a step runs; None for a model that is not elastic, such as an extracted one.
            subnet: what an extracted model is of its teacher, so that hidden states are compared layer by layer.
            objective: how each is trained; from the labels by default.
            teacher: a frozen model that the objective compares with; by default the step's first subnet teaches.
            same_width_teacher: let the frozen teacher, which is elastic then, run with each subnet's own FFN width and
                heads, in all of its layers (DynaBERT, arXiv 2004.04037, section 3.2).
            embed: for embedders: from what the model returns and its inputs to ``(batch, width)``.
            teacher_embed: the same of the teacher, where it has a head of its own; by default ``embed``.
            embedding_loss: for embedders: the task loss, where the data has labels or pairs.
            weights: how much the loss of each subnet counts in a step's weighted mean.
            regularise_largest_only: switch dropout off for all but the step's first pass (BigNAS, arXiv 2003.11142,
                section 3.1).
            granularities: subnets that `evaluate` measures besides the largest, under their names.
            measure: what `evaluate` measures of the active subnet instead of the loss, as names and values; for
                models whose quality is no mean over examples.

        Raises:
            ElasticError: if the model is not elastic though there is a sampler, or the process drives several GPUs.
        """
        super().__init__(*args, **kwargs)
        self._universal: PreTrainedModel = self.model  # type: ignore[assignment]
        self._elastic = None if sampler is None else get_elastic(self._universal)
        self._extracted = subnet
        if self.args.n_gpu > 1:
            raise ElasticError(
                f"one process drives {self.args.n_gpu} GPUs, where DataParallel would ignore the active subnet; start "
                "one process for each GPU with `accelerate launch`."
            )
        self.sampler = sampler
        self.objective: Objective = objective or TaskLoss()
        self._teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self._same_width_teacher = same_width_teacher
        self._embed, self._teacher_embed = embed, teacher_embed or embed
        self._embedding_loss = embedding_loss
        if embedding_loss is not None:
            # A model without a head takes no labels, and the Trainer would drop them from the batches.
            self.label_names = ["labels"]
        self._weights = weights
        self._regularise_largest_only = regularise_largest_only
        self._measure = measure
        self.granularities = dict(granularities or {})
        self._step: _Step | None = None
        self._micro_step = (-1, 0)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the subnets of this step, in as few forward-backward passes as they need; return their mean loss."""
        if self.sampler is None:
            self._step = _Step(1.0, (self._extracted,))
            try:
                return super().training_step(model, inputs, *args, **kwargs)
            finally:
                self._step = None
        micro_step = self._next_micro_step()
        subnets, inputs = self.sampler(*micro_step), self._batch(inputs, *micro_step)
        self._step = _Step(sum(self._weight(subnet) for subnet in subnets))
        try:
            losses = []
            for shared in self._passes(subnets):
                self._step.subnets = shared.subnets
                with active(self._universal, shared.widest):
                    losses.append(super().training_step(model, dict(inputs), *args, **kwargs))
        finally:
            self._step = None
            model.train()
        return torch.stack(losses).sum()

    def _batch(self, inputs: dict[str, Any], step: int, micro_step: int) -> dict[str, Any]:
        """Return what all passes of a step see of its batch."""
        return inputs

    def _passes(self, subnets: Sequence[Subnet]) -> list[SharedPass]:
        return shared_passes(subnets)

    def _weight(self, subnet: Subnet | None) -> float:
        return 1.0 if subnet is None else self._weights(subnet)

    def _next_micro_step(self) -> tuple[int, int]:
        step, micro_step = self._micro_step
        now = self.state.global_step
        self._micro_step = (now, micro_step + 1 if now == step else 0)
        return self._micro_step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Apply the objective in training; in evaluation, the Trainer's own loss."""
        step = self._step
        if step is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        widest = max(step.subnets, key=_exit)
        exits = any(_exit(subnet) != _exit(widest) for subnet in step.subnets)
        if exits or getattr(self.objective, "hidden_weight", 0.0) > 0:
            inputs = {**inputs, "output_hidden_states": True}
        if self._regularise_largest_only and step.teacher is not None:
            model.eval()
        if self._teacher is not None and (step.teacher is None or self._same_width_teacher):
            step.teacher = self._taught(self._teacher, widest, inputs)
        whole = self._forward(model, inputs, num_items_in_batch)
        steps = self._steps_left_to_divide(num_items_in_batch)
        losses = []
        for subnet in step.subnets:
            task_loss, student = whole[0], self._returned(whole[1], inputs, subnet, self._embed)
            if _exit(subnet) != _exit(widest):
                task_loss, student = self._leave_early(subnet, whole[1]["hidden_states"], inputs, num_items_in_batch)
            task_loss = self._task_loss(task_loss, student, inputs, steps)
            losses.append(self._weight(subnet) * self.objective(task_loss, student, step.teacher) / steps)
            if step.teacher is None:
                step.teacher = student.detach()
        loss = torch.stack(losses).sum() / step.total_weight
        return (loss, whole[1]) if return_outputs else loss

    def _task_loss(
        self, of_head: torch.Tensor | None, student: Returned, inputs: Mapping[str, Any], steps: int
    ) -> torch.Tensor | None:
        """Return what the labels say of a subnet, as a mean over the batch; None without labels.

        Args:
            of_head: the loss of the model's own head, if there is one.
            student: what the subnet returned.
            inputs: the batch.
            steps: by how much the head has divided its loss too often for a mean.
        """
        if self._embedding_loss is not None and student.embeddings is not None:
            return self._embedding_loss(student.embeddings, inputs["labels"])
        return None if of_head is None else of_head * steps

    def _steps_left_to_divide(self, num_items_in_batch: torch.Tensor | int | None) -> int:
        """Return by how many accumulation steps a loss that is a mean must be divided here.

        The Trainer divides mean losses by them, but not losses that the model normalised over the whole accumulated
        batch: distillation is a mean in either case.
        """
        already_scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return self.current_gradient_accumulation_steps if already_scaled else 1

    def _forward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[torch.Tensor | None, Any]:
        """Run the model; return the loss of its own head, if it has one and there are labels, and its outputs."""
        if "labels" in inputs and self._embed is None:
            return super().compute_loss(model, inputs, True, num_items_in_batch)  # type: ignore[return-value]
        return None, model(**{name: x for name, x in inputs.items() if name != "labels"})

    def _leave_early(
        self,
        subnet: Subnet | None,
        states: Sequence[torch.Tensor],
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor | None, Returned]:
        """Return the task loss of an exit and what it returned, from the hidden states of the whole pass."""
        before = states[: _exit(subnet)]
        with resumed_from(self._universal, states[len(before)]):
            task_loss, outputs = self._forward(self._universal, inputs, num_items_in_batch)
        student = self._returned(outputs, inputs, subnet, self._embed)
        after = (student.hidden_states or ())[len(before) :]
        return task_loss, replace(student, hidden_states=(*before, *after))

    def _taught(self, teacher: PreTrainedModel, subnet: Subnet | None, inputs: dict[str, Any]) -> Returned:
        width = active(teacher, of_all_layers(subnet)) if subnet and self._same_width_teacher else nullcontext()
        with torch.no_grad(), self.compute_loss_context_manager(), width:
            outputs = teacher(**{name: x for name, x in inputs.items() if name != "labels"})
        return self._returned(outputs, inputs, None, self._teacher_embed)

    def _returned(
        self,
        outputs: Any,
        inputs: Mapping[str, torch.Tensor],
        subnet: Subnet | None,
        embed: Embed | None,
    ) -> Returned:
        embeddings = None if embed is None else embed(outputs, inputs)
        if embeddings is not None and subnet is not None:
            embeddings = embeddings[..., : subnet.embedding_dim]
        return Returned(
            logits=outputs.get("logits"),
            embeddings=embeddings,
            tokens=outputs.get("last_hidden_state"),
            hidden_states=self._by_universal_layer(outputs.get("hidden_states"), subnet),
            mask=inputs.get("attention_mask"),
            kept_layers=() if subnet is None else subnet.kept_layers,
        )

    def _by_universal_layer(
        self, states: tuple[torch.Tensor, ...] | None, subnet: Subnet | None
    ) -> tuple[torch.Tensor, ...] | None:
        """Give the hidden states of an extracted model the places that its layers have in the teacher."""
        if states is None or self._extracted is None or subnet is None:
            return states
        places = [sum(kept < layer for kept in subnet.kept_layers) for layer in range(subnet.num_layers)]
        return (*(states[place] for place in places), states[-1])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load weights as ``from_pretrained`` does.

        transformers saves some architectures (ViT) under the names of their first release, and the Trainer (5.23)
        looks for the current ones: it warns of missing keys and trains on with fresh weights.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or model not in (None, self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(self._universal).from_pretrained(resume_from_checkpoint, config=self._universal.config)
        # Routers are no part of what from_pretrained loads.
        self._universal.load_state_dict({**self._universal.state_dict(), **saved.state_dict()})

    def _load_best_model(self) -> None:
        """Load the best checkpoint, with the names that `_load_from_checkpoint` knows."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.state.best_model_checkpoint is None:
            super()._load_best_model()
            return
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate the largest subnet as any Trainer does, and every granularity.

        Metrics of a granularity carry its name: ``eval_S_loss``.
        """
        if self._measure is not None:
            return self._evaluate_measure(metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics: dict[str, float] = {}
        if self._elastic is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        largest = self._elastic.resolved.largest
        for name, subnet in self.granularities.items():
            if subnet == largest:
                continue
            with self._evaluating(subnet):
                measured = self.evaluation_loop(
                    self.get_eval_dataloader(eval_dataset),
                    description=f"Evaluation of {name}",
                    prediction_loss_only=True if self.compute_metrics is None else None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=f"{metric_key_prefix}_{name}",
                ).metrics
            assert measured is not None
            self.log(measured)
            metrics.update(measured)
        with self._evaluating(largest):
            of_largest = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        for name, subnet in self.granularities.items():
            if subnet == largest:
                prefix = f"{metric_key_prefix}_"
                metrics.update({k.replace(prefix, f"{prefix}{name}_", 1): v for k, v in of_largest.items()})
        return {**metrics, **of_largest}

    @contextmanager
    def _evaluating(self, subnet: Subnet) -> Iterator[None]:
        """Run a subnet, as it is evaluated, inside the ``with`` block."""
        with active(self._universal, subnet):
            yield

    def _evaluate_measure(self, prefix: str) -> dict[str, float]:
        assert self._measure is not None
        metrics: dict[str, float] = {}
        subnets = {} if self._elastic is None else {**self.granularities, "": self._elastic.resolved.largest}
        for name, subnet in subnets.items() or [("", None)]:
            with nullcontext() if subnet is None else self._evaluating(subnet):
                measured = self._measure()
            begin = f"{prefix}_{name}_" if name else f"{prefix}_"
            metrics.update({f"{begin}{metric}": value for metric, value in measured.items()})
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _exit(subnet: Subnet | None) -> int:
    return 0 if subnet is None else exit_of(subnet)


class ElasticTrainer(ElasticMixin, Trainer):
    """A `transformers.Trainer` for universal models: everything that you know of it applies."""
