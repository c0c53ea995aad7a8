"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hubmerge.errors import UsageError
from hubmerge.hub.environment import home
from hubmerge.refs import ModelRef, parse_ref

if TYPE_CHECKING:
    from hubmerge.runs.machine import Machine
    from hubmerge.tasks.task import Task

Option = typer.Option

SplitName = Literal["test", "validation", "train"]
Split = Annotated[SplitName, Option(help="Choose on validation, report on test.")]
EvalSplit = Annotated[
    Literal["test", "validation", "train", "all"],
    Option(
        help="Choose on validation, report on test; all rows of a task of lm_eval with one split."
    ),
]
Private = Annotated[bool, Option("--private", help="Make a new repository private.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, write nothing.")]
Device = Annotated[
    str | None, Option(help="Where to compute: cpu, cuda ... [a GPU if there is one]")
]
Base = Annotated[str | None, Option(help="Base of the experts, if their manifests do not name it.")]
Heads = Annotated[
    Literal["keep", "drop", "merge"] | None,
    Option(help="Task heads of full experts: keep each beside the merge, drop or merge them."),
]
Tied = Annotated[
    Literal["untie", "base"] | None,
    Option(help="If an expert has its own output head and the base ties it to the embedding."),
]
Vocabulary = Annotated[
    Literal["base", "union"] | None,
    Option(help="If tokens differ: merge those of the base, or those of all."),
]
Dtype = Annotated[str | None, Option(help="Number format of the result, such as BF16.")]
StepPattern = Annotated[
    str | None,
    Option(help="Regular expression for steps in names of revisions: 'epoch-(\\d+)'."),
]
Tasks = Annotated[
    str | None,
    Option(
        help="Tasks, separated by commas, also lm-eval:NAME. [the tasks that the model or its "
        "experts are trained for]"
    ),
]
IncludePath = Annotated[
    Path | None,
    Option(help="Folder with YAML files of tasks of lm_eval, for --tasks lm-eval:NAME."),
]
Metric = Annotated[
    str | None,
    Option(
        help="Metric to measure by instead of the tasks' own: exact_match, contains, f1, rouge_l, "
        "likelihood, loss, perplexity, calibration_error, or a function, as module:function. "
        "select takes those of which more is better."
    ),
]
Columns = Annotated[
    str | None,
    Option(help="Columns of the data, if they are not guessed: text=review,label=stars."),
]


@dataclass(frozen=True)
class LockOptions:
    """Options that take experts and settings from a lock."""

    lock: Annotated[
        Path | None, Option(help="Use the experts and settings of a hubmerge.lock from `select`.")
    ] = None
    policy: Annotated[
        str | None, Option(help="Use the lock's pick of this policy. [the chosen one]")
    ] = None
    locked: Annotated[
        bool, Option("--locked", help="Refuse names that mean other commits than the lock pins.")
    ] = False

    def check(self, experts: list[str] | None) -> None:
        """Raises UsageError if there are no experts, or options of a lock without a lock."""
        if self.lock is not None:
            return
        if not experts:
            raise UsageError(
                "No experts are named.", "Name experts, owner/name@step64 ..., or use --lock."
            )
        if self.policy or self.locked:
            raise UsageError(f"{'--policy' if self.policy else '--locked'} needs --lock.")


@dataclass(frozen=True)
class ResultOptions:
    """Where a new model is written to and published, and under which licence."""

    out: Annotated[Path | None, Option(help="Folder of the result. [below ~/.hubmerge]")] = None
    replace: Annotated[bool, Option("--replace", help="Replace what is in --out.")] = False
    push: Annotated[
        str | None,
        Option(help="Publish the result as owner/name; a merge also as owner/name@tag."),
    ] = None
    licence: Annotated[
        str | None,
        Option("--license", "--licence", help="Licence of the result. [that of the experts]"),
    ] = None
    private: Private = False
    dry_run: DryRun = False

    @property
    def target(self) -> ModelRef | None:
        """The repository of --push, perhaps with a tag; raises UsageError for a folder."""
        return parse_push_target(self.push)


@dataclass(frozen=True)
class TrainingOptions:
    """How a training run uses this machine."""

    device: Device = None
    workers: Annotated[int, Option(min=0, help="Processes that prepare batches.")] = 0
    state_every: Annotated[
        int,
        Option(min=0, help="Save the training state every N steps; 0: only at published steps."),
    ] = 100
    track: Annotated[str, Option(help="Trackers, if installed: tensorboard, trackio, wandb.")] = ""
    resume: Annotated[bool, Option("--resume/--no-resume", help="Continue an interrupted run.")] = (
        True
    )

    def machine(self) -> Machine:
        """The machine of this process; its rank is the one that `accelerate launch` gave it."""
        from hubmerge.runs.machine import Machine

        trackers = tuple(filter(None, self.track.split(",")))
        rank = int(os.environ.get("RANK") or 0)
        processes = int(os.environ.get("WORLD_SIZE") or 1)
        return Machine(self.device, self.workers, self.state_every, trackers, rank, processes)


def parse_licence(text: str | None) -> str | None:
    """A licence as the Hub spells it; raises UsageError if the Hub has no such licence."""
    if text is None:
        return None
    from hubmerge.cards.licence import licence_id

    if (licence := licence_id(text)) is None:
        raise UsageError(f"--license {text!r} is not a known licence.", "Write apache-2.0 or mit.")
    return licence


def parse_push_target(text: str | None) -> ModelRef | None:
    """The repository of --push, perhaps with a tag; raises UsageError for a folder."""
    if text is None:
        return None
    ref = parse_ref(text)
    if ref.repo_id is None or ref.subfolder:
        raise UsageError(f"--push {text!r} is not a repository.", "Write owner/name.")
    return ref


def parse_settings(texts: Iterable[str], example: str) -> dict[str, str]:
    """The values of --set by name; raises UsageError unless each is name=value, given once."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--set {text!r} is not name=value.", f"Write --set {example}.")
        if name.strip() in settings:
            raise UsageError(f"--set {name.strip()} is given twice.", "Give it once.")
        settings[name.strip()] = value.strip()
    return settings


def split_names(text: str | None) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def find_tasks(
    names: Iterable[str], columns: str | None, include_path: Path | None = None
) -> list[Task]:
    """The tasks of these names; --columns is for data whose columns nothing else names.

    `include_path` has the YAML files of tasks of lm_eval.
    """
    from hubmerge.tasks.custom_task import parse_columns
    from hubmerge.tasks.lm_eval_name import is_lm_eval
    from hubmerge.tasks.lookup import find_task, has_fixed_columns
    from hubmerge.tasks.task_file import remember_data

    names = list(names)
    if include_path is not None and not any(map(is_lm_eval, names)):
        raise UsageError(
            "--include-path is for tasks of lm_eval.", "Name one: --tasks lm-eval:NAME."
        )
    parsed = parse_columns(columns) if columns else None
    if parsed and all(is_lm_eval(name) or has_fixed_columns(name) for name in names):
        raise UsageError(
            "--columns is for data whose columns nothing else names.",
            "Leave it out, or name the data: --tasks rows.csv.",
        )
    tasks = [
        _find_lm_eval_task(name, include_path)
        if is_lm_eval(name)
        # Tasks of hubmerge and task files in YAML name their columns themselves.
        else find_task(name, None if has_fixed_columns(name) else parsed)
        for name in names
    ]
    remember_data(home(), tasks)
    return tasks


def _find_lm_eval_task(text: str, include_path: Path | None) -> Task:
    """The task of lm_eval; without a folder for its YAML, perhaps that where it was used before."""
    from hubmerge.tasks.lm_eval_name import parse_lm_eval_name
    from hubmerge.tasks.lm_eval_task import find_known_task, find_lm_eval_task
    from hubmerge.tasks.task_file import known_data

    if include_path is not None:
        return find_lm_eval_task(text, include_path)
    label = str(parse_lm_eval_name(text))
    return find_known_task(label, known_data(home(), label))
