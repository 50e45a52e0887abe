"""Training a universal model: samplers choose the subnets of a step, objectives their losses."""

from elastic.training.objectives import InPlaceDistillation, Objective, TaskLoss
from elastic.training.samplers import Joint, Sampler, Sandwich, Uniform
from elastic.training.trainer import ElasticMixin, ElasticTrainer

__all__ = [
    "ElasticMixin",
    "ElasticTrainer",
    "InPlaceDistillation",
    "Joint",
    "Objective",
    "Sampler",
    "Sandwich",
    "TaskLoss",
    "Uniform",
]
