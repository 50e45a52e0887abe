"""Training a universal model: samplers choose the subnets of a step, objectives their losses."""

from elastic.training.auto_encoding import AutoEncoding, AutoEncodingMixin, AutoEncodingTrainer
from elastic.training.objectives import Distillation, Objective, Returned, SimilarityDistillation, TaskLoss
from elastic.training.routing import Capacity, RoutedMixin, RoutedTrainer, RouterTraining, gate_report
from elastic.training.samplers import (
    Buckets,
    ExitPairs,
    Joint,
    LayerDrop,
    Random,
    Sampler,
    Sandwich,
    Stages,
    Strata,
    Uniform,
)
from elastic.training.trainer import ElasticMixin, ElasticTrainer, EmbeddingLoss
from elastic.training.weights import Weights, by_exit, by_subnet

__all__ = [
    "AutoEncoding",
    "AutoEncodingMixin",
    "AutoEncodingTrainer",
    "Buckets",
    "Capacity",
    "RoutedMixin",
    "RoutedTrainer",
    "RouterTraining",
    "gate_report",
    "Distillation",
    "ElasticMixin",
    "ElasticTrainer",
    "EmbeddingLoss",
    "ExitPairs",
    "Joint",
    "LayerDrop",
    "Objective",
    "Random",
    "Returned",
    "Sampler",
    "Sandwich",
    "SimilarityDistillation",
    "Stages",
    "Strata",
    "TaskLoss",
    "Uniform",
    "Weights",
    "by_exit",
    "by_subnet",
]
