"""The method of a recipe: from its sections to samplers, objectives and losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from elastic.cost import CostModel
from elastic.data import Task, calibration_of
from elastic.errors import RecipeError, did_you_mean
from elastic.nested import get_elastic
from elastic.pipeline.preferred import preferred_subnets
from elastic.recipe import Recipe, SamplerSection
from elastic.recipe.training import (
    BucketsSampler,
    ExitPairsSampler,
    JointSampler,
    LayerDropSampler,
    PreferredSampler,
    RandomSampler,
    SandwichSampler,
    StrataSampler,
)
from elastic.space import ResolvedSpace, SearchSpace, Subnet
from elastic.training import (
    AutoEncoding,
    Buckets,
    Distillation,
    EmbeddingLoss,
    ExitPairs,
    Joint,
    LayerDrop,
    Objective,
    Random,
    Sampler,
    Sandwich,
    SimilarityDistillation,
    Stages,
    Strata,
    TaskLoss,
    Uniform,
    Weights,
    by_exit,
    by_subnet,
)
from elastic.training.weights import even

NUM_SCORED = 64
"""Training examples over which subnets are preferred: as many as PreNAS takes noise images."""


def make_sampler(recipe: Recipe, model: PreTrainedModel, task: Task, granularities: Mapping[str, Subnet]) -> Sampler:
    """Return what chooses the subnets of each step of a recipe.

    Raises:
        RecipeError: if the sampler names granularities that there are not, or stages leave the space.
    """
    training, space = recipe.training, get_elastic(model).resolved
    if not training.stages:
        return _sampler(training.sampler, recipe, model, task, space, granularities)
    samplers = []
    for index, stage in enumerate(training.stages):
        part = space.within(SearchSpace.from_dict(stage.space))
        within = {name: subnet for name, subnet in granularities.items() if subnet in part}
        if not within:
            raise RecipeError(f"none of the granularities lies in training.stages.{index}.space.")
        samplers.append(_sampler(stage.sampler, recipe, model, task, part, within))
    return Stages(samplers, [stage.start for stage in training.stages])


def _sampler(
    section: SamplerSection,
    recipe: Recipe,
    model: PreTrainedModel,
    task: Task,
    space: ResolvedSpace,
    granularities: Mapping[str, Subnet],
) -> Sampler:
    seed, named = recipe.seed, list(granularities.values())
    match section:
        case JointSampler():
            return Joint(named)
        case StrataSampler():
            return Strata(named, section.num, seed)
        case RandomSampler():
            return Random(space, seed, section.per_micro_step, section.largest)
        case SandwichSampler():
            return Sandwich(space, section.num_random, seed, named if section.granularities else ())
        case ExitPairsSampler():
            return ExitPairs(space, seed)
        case LayerDropSampler():
            return LayerDrop(space, section.rate, seed, section.ramp, section.exits, section.rotation)
        case BucketsSampler():
            cost_model = CostModel.of(model, task.input_shapes)
            return Buckets(space, lambda s: cost_model.cost(s).flops, section.num_buckets, section.weights, seed)
        case PreferredSampler():
            data = calibration_of(task, NUM_SCORED, seed=seed)
            cost_model = CostModel.of(model, task.input_shapes)
            return Uniform(preferred_subnets(model, space, cost_model, data, section.num_subnets), seed)
        case _:
            weights = _by_name(section.weights, granularities, "training.sampler.weights")
            by_weight = [weights.get(subnet, 1.0) for subnet in named] if weights else None
            return Uniform(named, seed, by_weight, section.mixed, space)


def _by_name(weights: Mapping[str, float], granularities: Mapping[str, Subnet], where: str) -> dict[Subnet, float]:
    for name in weights:
        if name not in granularities:
            raise RecipeError(f"{where}: there is no granularity '{name}'{did_you_mean(name, granularities)}")
    return {granularities[name]: weight for name, weight in weights.items()}


def make_weights(recipe: Recipe, granularities: Mapping[str, Subnet]) -> Weights:
    """Return how much the loss of each subnet counts.

    Raises:
        RecipeError: if a weight is of no granularity.
    """
    section = recipe.training.objective
    if section.exit_weights is not None:
        return by_exit(section.exit_weights)
    return (
        by_subnet(_by_name(section.weights, granularities, "training.objective.weights")) if section.weights else even
    )


def make_objective(recipe: Recipe, *, has_teacher: bool) -> Objective:
    """Return the objective of a recipe.

    Raises:
        RecipeError: if it needs a teacher, labels or a task that the recipe does not have.
    """
    section = recipe.training.objective
    if section.label_loss is not None and not getattr(recipe.data, "labelled", False):
        raise RecipeError("training.objective.label_loss is for labelled sentence pairs; set data.labelled: true.")
    if recipe.task == "sentence-similarity":
        return _of_embedders(recipe, has_teacher)
    if section.name in ("similarity", "smae"):
        raise RecipeError(f"the objective '{section.name}' is for embedders, task: sentence-similarity.")
    if section.name == "task":
        return TaskLoss()
    if section.task_weight > 1:
        raise RecipeError(f"training.objective.task_weight is {section.task_weight:g}; a share lies in 0 to 1.")
    if not has_teacher and recipe.training.sampler.name in ("uniform", "random", "buckets", "preferred"):
        raise RecipeError(
            "the objective 'distillation' needs several subnets a step (such as the sampler joint or sandwich), or "
            "teacher: original."
        )
    return Distillation(section.temperature or 1.0, section.task_weight, section.hidden_weight)


def _of_embedders(recipe: Recipe, has_teacher: bool) -> Objective:
    section = recipe.training.objective
    match section.name:
        case "smae":
            if has_teacher or section.label_loss or getattr(recipe.data, "labelled", False):
                raise RecipeError(
                    "the objective 'smae' learns from text alone; set data.labelled: false, without label_loss or "
                    "teacher."
                )
            return TaskLoss()
        case "similarity":
            if not has_teacher and section.label_loss is None:
                raise RecipeError(
                    "the objective 'similarity' is for embedders, with teacher: original, or with a label_loss."
                )
            return SimilarityDistillation(
                section.temperature or 0.05, section.embedding_weight, section.hidden_weight, section.task_weight
            )
        case "task" if section.label_loss is not None:
            return TaskLoss()
        case "distillation" if section.label_loss is not None:
            raise RecipeError("embedders have no logits to distil; use the objective 'similarity'.")
        case _:
            raise RecipeError(
                "embedders learn with the objective 'similarity' and teacher: original, or from labelled pairs with a "
                "label_loss, or with 'smae' from text."
            )


def make_auto_encoding(recipe: Recipe, task: Task) -> AutoEncoding | None:
    """Return how an embedder is pre-trained as a masked auto-encoder, if that is the recipe's objective.

    Raises:
        RecipeError: if nothing can be masked, or the decoder would see more than the encoder.
    """
    section, tokenizer = recipe.training.objective, task.tokenizer
    if section.name != "smae":
        return None
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise RecipeError(f"the tokenizer of '{recipe.model.pretrained}' has no mask token, which 'smae' needs.")
    if recipe.routers is not None:
        raise RecipeError("the objective 'smae' trains no routers; leave them to a recipe that follows.")
    return AutoEncoding(
        tokenizer.mask_token_id,
        tuple(token for token in tokenizer.all_special_ids if token != tokenizer.mask_token_id),
        section.mask_rate,
        section.decoder_mask_rate,
        section.decoder_layers,
        section.tied,
    )


def make_embedding_loss(recipe: Recipe) -> EmbeddingLoss | None:
    """Return the loss of labelled sentence pairs: one of sentence-transformers that takes embeddings.

    Raises:
        RecipeError: if there is no such loss.
    """
    name = recipe.training.objective.label_loss
    if name is None:
        return None
    from sentence_transformers.sentence_transformer import losses

    known = {key for key in dir(losses) if hasattr(getattr(losses, key), "compute_loss_from_embeddings")}
    if name not in known:
        raise RecipeError(
            f"training.objective.label_loss is '{name}', no loss of sentence-transformers over embeddings"
            f"{did_you_mean(name, known)}"
        )
    loss = getattr(losses, name)(model=None)

    def of_pairs(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pairs = [embeddings[0::2].float(), embeddings[1::2].float()]
        return loss.compute_loss_from_embeddings(pairs, labels.to(embeddings.device))  # type: ignore[no-any-return]

    return of_pairs


def frozen_teacher(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a frozen copy of the model as training found it, if the recipe wants it as teacher.

    Raises:
        RecipeError: if the model was not pretrained.
    """
    wanted = recipe.training.objective.teacher
    if wanted == "largest":
        return None
    if recipe.model.pretrained is None:
        raise RecipeError(f"teacher: {wanted} needs model.pretrained; a model from scratch has nothing to teach.")
    return copy.deepcopy(model).eval().requires_grad_(False)
