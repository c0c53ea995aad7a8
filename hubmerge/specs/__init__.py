"""What users write: tasks, training runs and mixtures."""

from hubmerge.specs.moe import MoeSpec
from hubmerge.specs.parsing import Spec, read_yaml, validated
from hubmerge.specs.task import Carve, DataSpec, Head, Kind, SplitsSpec, TaskSpec
from hubmerge.specs.train import Anneal, TrainSpec, Tune

__all__ = [
    "Anneal",
    "Carve",
    "DataSpec",
    "Head",
    "Kind",
    "MoeSpec",
    "Spec",
    "SplitsSpec",
    "TaskSpec",
    "TrainSpec",
    "Tune",
    "read_yaml",
    "validated",
]
