"""How a recipe trains: which subnets a step runs, and what they learn from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from elastic.recipe.section import Number, Section


class UniformSampler(Section):
    """One granularity a step."""

    name: Literal["uniform"]
    weights: dict[str, float] = Field({}, description="How often each granularity is drawn; 1 where nothing is said.")
    mixed: float = Field(
        0.0, ge=0, le=1, description="How often it is a random subnet of the space instead: a mix of granularities."
    )


class JointSampler(Section):
    """All granularities every step."""

    name: Literal["joint"]


class StrataSampler(Section):
    """One granularity of each size class a step: between uniform and joint."""

    name: Literal["strata"]
    num: int = Field(2, ge=1, description="How many size classes, and so subnets a step.")


class RandomSampler(Section):
    """A random subnet of the space a step."""

    name: Literal["random"]
    per_micro_step: bool = Field(False, description="Another one for each batch that is accumulated into a step.")
    largest: float = Field(0.0, ge=0, le=1, description="How often it is the largest instead.")


class SandwichSampler(Section):
    """The largest, the smallest and some random subnets of the space."""

    name: Literal["sandwich"]
    num_random: int = Field(2, ge=0, description="Random subnets a step.")
    granularities: bool = Field(False, description="Run the named granularities in every step, too.")


class ExitPairsSampler(Section):
    """The whole, a random exit, a random number of embedding dimensions, and both together."""

    name: Literal["exit-pairs"]


class LayerDropSampler(Section):
    """The largest subnet without some random layers."""

    name: Literal["layerdrop"]
    rate: float = Field(0.2, ge=0, lt=1, description="How often a layer is left out; with a ramp, the last layer.")
    ramp: Literal["flat", "linear", "exponential"] = Field("flat", description="How the rate grows with depth.")
    exits: list[int] = Field([], description="Exits that are trained with it, as numbers of layers.")
    rotation: int = Field(1, ge=1, description="Train each exit in every so many-th step only.")


class BucketsSampler(Section):
    """A random subnet a step, evenly over the range of FLOPs."""

    name: Literal["buckets"]
    num_buckets: int = Field(8, ge=2)
    weights: list[float] | None = Field(None, description="How often each bucket is drawn, the cheapest first.")


class PreferredSampler(Section):
    """One of a few subnets that a zero-cost score prefers before training, one for each range of parameters."""

    name: Literal["preferred"]
    num_subnets: int = Field(8, ge=2, description="How many, evenly over the range of parameters.")


SAMPLER_SECTIONS: dict[str, type[Section]] = {
    "uniform": UniformSampler,
    "joint": JointSampler,
    "strata": StrataSampler,
    "random": RandomSampler,
    "sandwich": SandwichSampler,
    "exit-pairs": ExitPairsSampler,
    "layerdrop": LayerDropSampler,
    "buckets": BucketsSampler,
    "preferred": PreferredSampler,
}
SamplerSection = Annotated[
    UniformSampler
    | JointSampler
    | StrataSampler
    | RandomSampler
    | SandwichSampler
    | ExitPairsSampler
    | LayerDropSampler
    | BucketsSampler
    | PreferredSampler,
    Field(discriminator="name"),
]


class StageSection(Section):
    """A part of the training with a sampler of its own, in a part of the space."""

    start: int = Field(ge=0, description="The first optimizer step.")
    sampler: SamplerSection
    space: dict[str, list[Number]] = Field(
        {}, description="Choices that are trained in this stage, of those of the recipe's space; by default all."
    )


class ObjectiveSection(Section):
    """What each subnet of a step learns from."""

    name: Literal["task", "distillation", "similarity", "smae"] = Field(
        "task",
        description="task: the labels. distillation: a teacher's logits. similarity: for embedders, which examples "
        "of a batch the teacher finds alike. smae: for embedders, before anything else: masked text is restored from "
        "tokens, and by a small decoder from embeddings.",
    )
    teacher: Literal["largest", "original", "same-width"] = Field(
        "largest",
        description="largest: the step's first subnet, as it learns. original: the model that training started from, "
        "frozen; it takes no labels. same-width: that model, run with each subnet's own FFN width and heads.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Softens both distributions; by default 1, and 0.05 for similarity."
    )
    task_weight: float = Field(
        0.0, ge=0, description="distillation: share of the students' own task loss; similarity: its weight."
    )
    label_loss: str | None = Field(
        None,
        description="Embedders with labelled pairs: a loss of sentence-transformers over embeddings, such as "
        "CoSENTLoss.",
    )
    embedding_weight: float = Field(1.0, ge=0, description="similarity: weight of the distance of embeddings.")
    mask_rate: float = Field(0.2, gt=0, lt=1, description="smae: share of the tokens that the encoder does not see.")
    decoder_mask_rate: float = Field(0.4, gt=0, lt=1, description="smae: share that the decoder does not see.")
    decoder_layers: int = Field(1, ge=1, description="smae: layers of the decoder; it is thrown away afterwards.")
    tied: bool = Field(True, description="smae: tokens are read out by the model's own word embeddings, not by a copy.")
    weights: dict[str, float] = Field({}, description="How much the loss of each granularity counts; 1 by default.")
    exit_weights: float | None = Field(
        None, gt=0, description="Instead: weights that grow with an exit's depth, with this scale (LayerSkip)."
    )
    hidden_weight: float = Field(0.0, ge=0, description="Weight of the distance of hidden states to the teacher's.")


class TrainingSection(Section):
    """How long and how to train."""

    sampler: SamplerSection = UniformSampler(name="uniform")
    stages: list[StageSection] = Field([], description="Instead of one sampler: one after the other.")
    objective: ObjectiveSection = ObjectiveSection()
    regularise_largest_only: bool = Field(False, description="Dropout for the step's first pass alone.")
    arguments: dict[str, Any] = Field({}, description="`transformers.TrainingArguments`, by their names.")
