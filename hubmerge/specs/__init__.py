"""The specs that users write: tasks, training runs, mixtures of experts and recipes."""

from hubmerge.metric_names import (
    BINARY_METRICS,
    GENERATION_METRICS,
    LIKELIHOOD,
    RETRIEVAL_METRICS,
)
from hubmerge.specs.moe import MoeSpec
from hubmerge.specs.parsing import Spec, parse_yaml, read_yaml, validate_spec
from hubmerge.specs.task import (
    Head,
    Kind,
    TaskSpec,
)
from hubmerge.specs.task_data import Carve, CorpusSpec, DataSpec, SplitsSpec
from hubmerge.specs.train import Anneal, TrainSpec, Tune, unused_options

__all__ = [
    "BINARY_METRICS",
    "GENERATION_METRICS",
    "LIKELIHOOD",
    "RETRIEVAL_METRICS",
    "Anneal",
    "Carve",
    "CorpusSpec",
    "DataSpec",
    "Head",
    "Kind",
    "MoeSpec",
    "Spec",
    "SplitsSpec",
    "TaskSpec",
    "TrainSpec",
    "Tune",
    "parse_yaml",
    "read_yaml",
    "unused_options",
    "validate_spec",
]
