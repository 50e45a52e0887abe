"""Training a universal model: samplers choose the subnets of a step, objectives their losses."""

from elastic.training.objectives import Distillation, Objective, Returned, SimilarityDistillation, TaskLoss
from elastic.training.samplers import Joint, Sampler, Sandwich, Uniform
from elastic.training.trainer import ElasticMixin, ElasticTrainer

__all__ = [
    "Distillation",
    "ElasticMixin",
    "ElasticTrainer",
    "Joint",
    "Objective",
    "Returned",
    "Sampler",
    "Sandwich",
    "SimilarityDistillation",
    "TaskLoss",
    "Uniform",
]
