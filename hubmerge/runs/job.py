"""What can be trained and published step by step: an expert, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hubmerge.kinds import JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import Opened
from hubmerge.specs import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor

    from hubmerge.learners.learner import Learner
    from hubmerge.runs.machine import Machine
    from hubmerge.training.batches import Rows
    from hubmerge.training.events import Moment
    from hubmerge.training.inputs import Watched

Weights = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Begun:
    """A job at hand: what learns, from which rows, watched on which, and how it is kept.

    `sample` is a row to try it with. `save` writes what training changed into a folder, from the
    network's own weights or from those given by its names; `measure` adds what is found out about
    it, which its manifest does not vouch for. `logged` are numbers that trackers are told beside
    the accuracy. `about` is what the manifest says of it beside its settings, `lock` what lies
    beside every step.
    """

    learner: Learner
    training: Rows
    watched: tuple[Watched, ...]
    sample: Any
    save: Callable[[Path, Weights | None], None]
    about: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[Path], None] = lambda folder: None
    logged: Callable[[], Mapping[str, float]] = dict
    lock: bytes | None = None


class Job(Protocol):
    """One run's work, checked: `spec` is how the loop trains it, `planned` the steps it is kept at.

    `identity` is all that decides the weights and which of them are kept.
    """

    @property
    def kind(self) -> JobKind: ...

    @property
    def base(self) -> Opened: ...

    @property
    def spec(self) -> TrainSpec: ...

    @property
    def planned(self) -> tuple[int, ...]: ...

    @property
    def identity(self) -> list[Any]: ...

    def begin(self) -> Begun:
        """Open model and rows."""

    def command(self, machine: Machine) -> str:
        """The command that repeats it."""

    def manifest(self, moment: Moment, begun: Begun) -> Manifest:
        """What is said of the step at hand, without run, command, files and versions."""
