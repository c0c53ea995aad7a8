"""The training job of one expert: one base, one task."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.difficulty.difficulty import read_difficulty
from hubmerge.difficulty.pruning import PrunedRows, check_row_count, prune
from hubmerge.hub.client import Hub
from hubmerge.kinds import EXPERT, JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref, pin_task, source_of
from hubmerge.refs import parse_ref
from hubmerge.runs.job import ReadyJob
from hubmerge.runs.machine import Machine, check_can_quantise, check_machine
from hubmerge.runs.run import Run, prepare_run
from hubmerge.runs.start_point import NEW_OPTIMIZER, StartPoint, load_start, open_start
from hubmerge.specs import TrainSpec
from hubmerge.tasks.task import Task
from hubmerge.tasks.task_file import task_file
from hubmerge.training.schedule import check_even_batches, push_steps

if TYPE_CHECKING:
    from hubmerge.tasks.data import Split
    from hubmerge.tasks.stream import Stream
    from hubmerge.training.events import CheckpointEvent


@dataclass(frozen=True)
class ExpertJob:
    """The training of one expert; `columns` is the value of --columns.

    `pruned` are the remaining rows if the hardest ones are dropped, and `start` the step that the
    run continues from.
    """

    spec: TrainSpec
    base: OpenedModel
    task: Task
    columns: str | None = None
    pruned: PrunedRows | None = None
    start: StartPoint | None = None
    kind: JobKind = EXPERT

    @property
    def planned_steps(self) -> tuple[int, ...]:
        first = self.start.step if self.start else 0
        steps = push_steps(self.spec.push_every, self.spec.steps)
        return tuple(step for step in steps if step > first)

    @property
    def identity(self) -> list[Any]:
        # The remaining rows decide the weights, not the file and the share that select them.
        ignored = {
            "push_every",
            "start_from",
            *(("difficulty", "drop_hardest") if self.pruned else ()),
        }
        settings = {n: value for n, value in self.spec.settings.items() if n not in ignored}
        settings["warmup"] = [self.spec.warmup_length(step) for step in self.planned_steps]
        if self.pruned:
            settings["rows"] = self.pruned.digest
        start = [self.start.identity] if self.start else []
        steps = self.planned_steps
        return [settings, steps, self.spec.to, self.base.digest, self.task.digest, *start]

    def build(self) -> ReadyJob:
        from hubmerge.evaluation import Examples
        from hubmerge.runs.expert_model import make_expert_model
        from hubmerge.tasks.data import load_split
        from hubmerge.training.inputs import ValidationTask

        validation = load_split(self.task, "validation")
        expert = make_expert_model(self.base, self.task, validation.classes, self.spec)
        if self.start is not None:
            load_start(expert, self.start)
        examples = Examples(expert.learner.for_evaluation, validation)
        manifest_fields: dict[str, Any] = {"layout": expert.layout}
        if expert.adapted:
            manifest_fields["base_layout"] = expert.model.layout
        return ReadyJob(
            learner=expert.training_learner(self.spec),
            training=self._training_rows(),
            validation_tasks=(ValidationTask(expert.learner, examples),),
            sample=validation.example(0),
            save=expert.save,
            manifest_fields=manifest_fields,
            task_file=task_file(self.task),
            start_step=self.start.step if self.start else 0,
            start_curve=self.start.curve if self.start else (),
        )

    def _training_rows(self) -> Split | Stream:
        from hubmerge.tasks.data import load_split
        from hubmerge.tasks.stream import load_stream

        spec = self.spec
        if spec.stream:
            return load_stream(self.task, spec.max_examples)
        training = load_split(self.task, "train")
        if self.pruned:
            check_row_count(self.pruned, len(training), self.task.id)
            training = training.select(self.pruned.rows)
        if spec.max_examples is not None:
            training = training.sample(spec.max_examples, spec.seed)
        return training

    def command(self, machine: Machine) -> str:
        """The command with all options that influence the run and are not the default."""
        words = ["hubmerge", "train"]
        if machine.world_size > 1:  # sums are split, so it is another run than with one process
            words = ["torchrun", "--nproc_per_node", str(machine.world_size), "-m", *words]
        options = self.spec.model_dump(exclude_defaults=True)
        if self.columns:
            options["columns"] = self.columns
        if self.task.spec.data.skip_broken:
            options["skip_broken"] = True
        return shlex.join([*words, *format_options(options)])

    def manifest(self, event: CheckpointEvent, ready: ReadyJob) -> Manifest:
        spec = self.spec
        length = event.step if spec.anneal == "independent" else spec.steps
        fields = dict(ready.manifest_fields)
        layout = fields.pop("layout")
        training = {**spec.settings, "warmup_steps": spec.warmup_length(length), **fields}
        if self.pruned:
            training |= self.pruned.to_json()
        if self.start:
            source = source_of(self.start.model)
            training |= {"start_from": f"{source.name}@{source.sha}", "start_step": self.start.step,
                         "optimizer": NEW_OPTIMIZER}  # fmt: skip
        if skipped := _skipped_rows(ready):
            training |= {"skipped_rows": skipped}
        return Manifest(
            kind=EXPERT,
            base=source_of(self.base),
            task=self.task.id,
            task_kind=self.task.spec.kind,
            last_step=event.step if event.stopped else spec.steps,
            training={**training, "data_revision": self.task.spec.data.revision},
            layout=layout,
        )


def _skipped_rows(ready: ReadyJob) -> dict[str, int]:
    """How many broken rows were left out, by split."""
    from hubmerge.tasks.data import Split

    rows = (ready.training, *(task.examples.split for task in ready.validation_tasks))
    splits = (split for split in rows if isinstance(split, Split))
    return {split.name: split.skipped for split in splits if split.skipped}


def format_options(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def prepare_expert_run(
    hub: Hub,
    spec: TrainSpec,
    task: Task,
    runs: Path,
    out: Path | None = None,
    machine: Machine | None = None,
    columns: str | None = None,
) -> Run:
    """Check all that can be checked before training: options, base, data, folder and repository.

    Writes nothing. Raises IntegrityError if the folder or the repository holds another run.
    """
    machine = machine or Machine()
    check_machine(machine)
    if spec.load_in is not None:
        check_can_quantise()
    check_even_batches(spec, machine.world_size)
    push_steps(spec.push_every, spec.steps)
    base = open_ref(hub, parse_ref(spec.base))
    pinned = pin_task(hub, task)
    if pinned.spec.kind == "pairs":
        from hubmerge.runs.expert_model import check_batch_of_pairs

        check_batch_of_pairs(pinned, spec, machine.world_size)
    start = open_start(hub, spec, base, pinned)
    job = ExpertJob(spec, base, pinned, columns, _prune(spec, pinned), start)

    def folder(run_id: str) -> Path:
        return out or runs / spec.to / run_id[:12]

    return prepare_run(hub, job, spec.to, machine, folder, lambda: _check_data(job))


def _prune(spec: TrainSpec, task: Task) -> PrunedRows | None:
    """The rows that remain without the hardest, None if all are used."""
    if not spec.drops_rows:
        return None
    return prune(read_difficulty(Path(str(spec.difficulty))), spec.drop_hardest, task.id)


def _check_data(job: ExpertJob) -> tuple[ReadyJob, tuple[str, ...]]:
    """Open model and data before anything is written; returns them with notes for the user."""
    from hubmerge.runs.expert_model import data_notes
    from hubmerge.tasks.data import Split

    ready = job.build()
    training = ready.training if isinstance(ready.training, Split) else None
    validation = ready.validation_tasks[0].examples.split
    return ready, tuple(data_notes(ready.learner, training, validation))
