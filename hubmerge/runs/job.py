"""The interface of a training job, which makes an expert or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hubmerge.kinds import JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.specs import TrainSpec
from hubmerge.training_curve import ValidationPoint

if TYPE_CHECKING:
    from torch import Tensor

    from hubmerge.learners.learner import Learner
    from hubmerge.runs.machine import Machine
    from hubmerge.training.batches import TrainingRows
    from hubmerge.training.events import CheckpointEvent
    from hubmerge.training.inputs import ValidationTask

Weights = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class ReadyJob:
    """A job with model and data opened: learner, training rows, validation tasks, how to save it.

    `sample` is a row for a trial run. `save` writes what training changed into a folder, either the
    weights of the network or the given ones, by their names in the network. `write_measurements`
    adds files that the manifest does not list. `extra_metrics` are logged by trackers in addition
    to the accuracy. `manifest_fields` go into the manifest in addition to the settings, and `lock`
    and `task_file`, the YAML of an own task, are written next to every step. A run that continues
    another one starts after `start_step`, with `start_curve` up to it.
    """

    learner: Learner
    training: TrainingRows
    validation_tasks: tuple[ValidationTask, ...]
    sample: Any
    save: Callable[[Path, Weights | None], None]
    manifest_fields: Mapping[str, Any] = field(default_factory=dict)
    write_measurements: Callable[[Path], None] = lambda folder: None
    extra_metrics: Callable[[], Mapping[str, float]] = dict
    lock: bytes | None = None
    task_file: bytes | None = None
    start_step: int = 0
    start_curve: tuple[ValidationPoint, ...] = ()


class Job(Protocol):
    """The checked work of one run: `spec` is the training, `planned_steps` are the steps to save.

    `identity` is all that decides the weights and which steps are saved.
    """

    @property
    def kind(self) -> JobKind: ...

    @property
    def base(self) -> OpenedModel: ...

    @property
    def spec(self) -> TrainSpec: ...

    @property
    def planned_steps(self) -> tuple[int, ...]: ...

    @property
    def identity(self) -> list[Any]: ...

    def build(self) -> ReadyJob:
        """Open model and data."""

    def command(self, machine: Machine) -> str:
        """The command that repeats the job."""

    def manifest(self, event: CheckpointEvent, ready: ReadyJob) -> Manifest:
        """The manifest of the current step, without run, command, files and versions."""
