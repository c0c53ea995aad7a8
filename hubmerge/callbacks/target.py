"""Where the steps of a loop go and what they are for: the arguments of PushSteps, checked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import UsageError, check_all
from hubmerge.refs import ModelRef, check_repo_id, parse_ref
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import is_due

DEFAULT_PATIENCE_S = 60.0
_ONE_STEP = re.compile(r"[1-9]\d*,")


@dataclass(frozen=True)
class PushTarget:
    """The repository of the steps, which steps, their task and base, and how long to wait.

    `push_every` is a rule for steps as in `hubmerge train --push-every`. `hub` is `local`, or None
    for the Hub of the environment. `base` is None if the model knows it. `folder` is the folder of
    the run, None for one in the home of hubmerge. `patience_s` is how many seconds the end of
    training waits for a Hub that does not answer.
    """

    to: str
    push_every: str
    hub: str | None = None
    task: Task | None = None
    base: ModelRef | None = None
    folder: Path | None = None
    private: bool = False
    patience_s: float = DEFAULT_PATIENCE_S

    def is_due(self, step: int) -> bool:
        """Whether the rule includes a step."""
        return _is_due(self.push_every, step)

    def steps_after(self, last: int) -> list[int]:
        """The steps of a list that a run of `last` steps does not reach."""
        listed = self.push_every.split(",") if "," in self.push_every else []
        return sorted(int(step) for step in listed if step.strip() and int(step) > last)

    def publish_command(self, steps: Path, to: str | None = None) -> str:
        """The command that publishes a folder of steps later."""
        words = ["hubmerge", "publish", str(steps), "--to", to or self.to]
        words += ["--hub", self.hub] if self.hub else []
        return shlex.join(words + (["--private"] if self.private else []))


def make_target(
    to: str,
    push_every: str | int | Sequence[int],
    hub: str | None,
    task: str | Path | None,
    base: str | Path | None,
    folder: str | Path | None,
    private: bool,
    patience_s: float,
) -> PushTarget:
    """Check the arguments of PushSteps; raises UsageError or DataError for all that are wrong."""
    rule = write_rule(push_every)
    check_all(
        lambda: check_repo_id(to),
        lambda: _is_due(rule, 1),
        lambda: _check_hub(hub),
        lambda: _check_patience(patience_s),
        lambda: find_task(str(task)).digest if task is not None else None,
        lambda: parse_ref(str(base)) if base is not None else None,
    )
    return PushTarget(
        to=to,
        push_every=rule,
        hub=hub,
        task=find_task(str(task)) if task is not None else None,
        base=parse_ref(str(base)) if base is not None else None,
        folder=Path(folder).expanduser().absolute() if folder is not None else None,
        private=private,
        patience_s=patience_s,
    )


def write_rule(push_every: str | int | Sequence[int]) -> str:
    """A rule for steps as text: of a number every n steps, of a list exactly its steps."""
    if isinstance(push_every, str | int):
        return str(push_every)
    steps = [str(step) for step in push_every]
    return f"{steps[0]}," if len(steps) == 1 else ",".join(steps)


def _is_due(rule: str, step: int) -> bool:
    """Whether a rule includes a step; raises UsageError for what is no rule."""
    if _ONE_STEP.fullmatch(rule):
        return step == int(rule[:-1])
    return is_due(rule, step)


def _check_hub(hub: str | None) -> None:
    if hub not in (None, "local"):
        raise UsageError(
            f"hub={hub!r} is not a Hub.",
            'Write hub="local" for the embedded Hub, or leave it out for huggingface.co '
            "(HF_ENDPOINT names another).",
        )


def _check_patience(patience_s: float) -> None:
    if not 0 <= patience_s < 10**6:
        raise UsageError(f"patience_s={patience_s!r} is not a number of seconds.", "Write 60.")
