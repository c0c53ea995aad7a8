"""An expert as a job: one base, one task."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.difficulty.difficulty import read_difficulty
from hubmerge.difficulty.pruning import Pruned, check_rows, prune
from hubmerge.hub.client import Hub
from hubmerge.kinds import EXPERT, JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_ref, pin_task, source_of
from hubmerge.refs import parse_ref
from hubmerge.runs.job import Begun
from hubmerge.runs.machine import Machine, check_machine
from hubmerge.runs.run import Run, prepare_run
from hubmerge.specs import TrainSpec
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import check_even, push_steps

if TYPE_CHECKING:
    from hubmerge.tasks.data import Split
    from hubmerge.tasks.stream import Stream
    from hubmerge.training.events import Moment


@dataclass(frozen=True)
class ExpertJob:
    """The training of one expert; `columns` is what --columns said.

    `pruned` are the rows that are left where the hardest are dropped.
    """

    spec: TrainSpec
    base: Opened
    task: Task
    columns: str | None = None
    pruned: Pruned | None = None
    kind: JobKind = EXPERT

    @property
    def planned(self) -> tuple[int, ...]:
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def identity(self) -> list[Any]:
        said = {name: value for name, value in self.spec.settings.items() if name != "push_every"}
        said["warmup"] = [self.spec.warmup_length(step) for step in self.planned]
        if self.pruned:  # which rows are left decides, whatever file and share say so
            said = {name: said[name] for name in said if name not in ("difficulty", "drop_hardest")}
            said["rows"] = self.pruned.digest
        return [said, self.planned, self.spec.to, self.base.digest, self.task.digest]

    def begin(self) -> Begun:
        from hubmerge.evaluation import Examples
        from hubmerge.runs.expert_model import make_trainee
        from hubmerge.tasks.data import load_split
        from hubmerge.training.inputs import Watched

        validation = load_split(self.task, "validation")
        trainee = make_trainee(self.base, self.task, validation.classes, self.spec)
        watched = Watched(trainee.learner, Examples(trainee.learner.for_evaluation, validation))
        about: dict[str, Any] = {"layout": trainee.layout}
        if trainee.adapted:
            about["base_layout"] = trainee.model.layout
        sample = validation.example(0)
        return Begun(trainee.learner, self._rows(), (watched,), sample, trainee.save, about)

    def _rows(self) -> Split | Stream:
        from hubmerge.tasks.data import load_split
        from hubmerge.tasks.stream import load_stream

        spec = self.spec
        if spec.stream:
            return load_stream(self.task, spec.max_examples)
        training = load_split(self.task, "train")
        if self.pruned:
            check_rows(self.pruned, len(training), self.task.id)
            training = training.only(self.pruned.rows)
        if spec.max_examples is not None:
            training = training.sample(spec.max_examples, spec.seed)
        return training

    def command(self, machine: Machine) -> str:
        """Every option that decides it and is not the default."""
        said = {"columns": self.columns} if self.columns else {}
        words = ["hubmerge", "train"]
        if machine.world > 1:  # other sums, so another run than that of one process
            words = ["torchrun", "--nproc_per_node", str(machine.world), "-m", *words]
        return shlex.join([*words, *flags({**self.spec.model_dump(exclude_defaults=True), **said})])

    def manifest(self, moment: Moment, begun: Begun) -> Manifest:
        spec = self.spec
        length = moment.step if spec.anneal == "independent" else spec.steps
        about = dict(begun.about)
        layout = about.pop("layout")
        said = {**spec.settings, "warmup_steps": spec.warmup_length(length), **about}
        if self.pruned:
            said |= self.pruned.said
        return Manifest(
            kind=EXPERT,
            base=source_of(self.base),
            task=self.task.id,
            task_kind=self.task.spec.kind,
            last_step=moment.step if moment.stopped else spec.steps,
            training={**said, "data_revision": self.task.spec.data.revision},
            layout=layout,
        )


def flags(said: dict[str, Any]) -> list[str]:
    """Options as one types them."""
    words = []
    for name, value in said.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def prepare(
    hub: Hub,
    spec: TrainSpec,
    task: Task,
    runs: Path,
    out: Path | None = None,
    machine: Machine | None = None,
    columns: str | None = None,
) -> Run:
    """Check everything that can be checked before training: names, base, data, what lies where.

    Writes nothing, here or there. Raises IntegrityError if folder or repository hold another run.
    """
    machine = machine or Machine()
    check_machine(machine)
    check_even(spec, machine.world)
    push_steps(spec.push_every, spec.steps)
    base = open_ref(hub, parse_ref(spec.base))
    pinned = pin_task(hub, task)
    job = ExpertJob(spec, base, pinned, columns, _pruned(spec, pinned))

    def folder(run_id: str) -> Path:
        return out or runs / spec.to / run_id[:12]

    return prepare_run(hub, job, spec.to, machine, folder, lambda: _checked(job))


def _pruned(spec: TrainSpec, task: Task) -> Pruned | None:
    """The rows that are left without the hardest, None where all are trained on."""
    if not spec.drops:
        return None
    return prune(read_difficulty(Path(str(spec.difficulty))), spec.drop_hardest, task.id)


def _checked(job: ExpertJob) -> tuple[str, ...]:
    """Open model and data once before anything is written; returns what should be known."""
    from hubmerge.runs.expert_model import early_notes
    from hubmerge.tasks.data import Split

    begun = job.begin()
    training = begun.training if isinstance(begun.training, Split) else None
    return tuple(early_notes(begun.learner, training, begun.watched[0].examples.split))
