"""All errors of hubmerge, in one tree.

    HubmergeError                 exit 1   a failure that the user can act on
    |-- UsageError                exit 2   invalid or contradictory options or names
    |   `-- UnknownName           exit 2   a name that does not exist, with the closest known ones
    |-- CheckpointError           exit 1   weights that cannot be read or do not fit together
    |-- DataError                 exit 1   a data set or a task that cannot be used
    |-- TrainingDiverged          exit 1   a loss that is NaN or infinite, or explodes
    |-- OutOfMemory               exit 1   a training step that does not fit
    |-- Busy                      exit 75  another process has the lock; retry later
    |-- HubError                  exit 1   the Hub refused the request
    |   |-- NotOnHub              exit 1   no such repository, revision or file
    |   |-- NoAccess              exit 1   the token does not allow it
    |   `-- HubUnreachable        exit 75  no answer in time; retry later
    |       `-- HubOffline        exit 75  HF_HUB_OFFLINE forbids to ask
    `-- IntegrityError            exit 3   bytes, tags or bases differ from what was recorded

A message is one sentence that names the repository, file or tensor; a hint is what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

T = TypeVar("T")
Item = TypeVar("Item")


class HubmergeError(Exception):
    """A failure that the user can act on: one sentence and a hint.

    `problems` holds each problem on its own where the error stands for several.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems: tuple[str, ...] = (message,)


class UsageError(HubmergeError):
    """Invalid or contradictory options or names."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not among the known ones; the hint lists the closest of these."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {join_with_or(near)}?" if near else f"Known: {', '.join(names)}."
        super().__init__(f"Unknown {kind} {name!r}.", hint)
        self.near = near


class CheckpointError(HubmergeError):
    """Weights that cannot be read or do not fit together."""


class DataError(HubmergeError):
    """A data set or a task that cannot be used."""


class TrainingDiverged(HubmergeError):
    """A loss that is NaN or infinite, or explodes."""


class OutOfMemory(HubmergeError):
    """A training step that does not fit into memory."""


class Busy(HubmergeError):
    """Another process is working on it: the same command may work when that one is done."""

    exit_code = 75


class HubError(HubmergeError):
    """The Hub refused the request."""


class NotOnHub(HubError):
    """No such repository, revision or file."""


class NoAccess(HubError):
    """The token does not allow it, or there is none."""


class HubUnreachable(HubError):
    """No answer in time: nothing is lost, and the same command may work later."""

    exit_code = 75


class HubOffline(HubUnreachable):
    """HF_HUB_OFFLINE is set, so the Hub is not asked; what is in the cache can be used."""


class IntegrityError(HubmergeError):
    """Bytes, tags or bases that differ from what was recorded."""

    exit_code = 3


def join_with_or(names: Sequence[str]) -> str:
    """Join names in English: "a", "a or b", "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def raise_together(error: type[HubmergeError], problems: Sequence[str], hint: str = "") -> None:
    """Raise all problems as one error, so that all can be fixed at once; no error if none."""
    if len(problems) == 1:
        raise error(problems[0], hint)
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        failure = error(f"{len(problems)} problems:{listed}", hint)
        failure.problems = tuple(problems)
        raise failure


class Failures:
    """The failures of several steps, raised as one error, so that all can be fixed at once."""

    def __init__(self, errors: Iterable[HubmergeError] = ()) -> None:
        self.errors = list(errors)

    def run(self, step: Callable[[], T]) -> T | None:
        """Return the value of a step, None if it fails.

        Raises Busy and HubUnreachable at once: the next step would wait for the same.
        """
        try:
            return step()
        except (Busy, HubUnreachable):
            raise
        except HubmergeError as error:
            self.errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raise all failures as one error, with the class of the first; no error if none."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            hints = dict.fromkeys(error.hint for error in self.errors if error.hint)
            # One file may fail several steps in the same way.
            problems = dict.fromkeys(text for error in self.errors for text in error.problems)
            first = type(self.errors[0])
            error = UsageError if first is UnknownName else first
            raise_together(error, list(problems), " ".join(hints))


def map_all(function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """Return the value for each item; all failures are raised as one error, as by `Failures`."""
    failures = Failures()
    values = [failures.run(partial(function, item)) for item in items]
    failures.raise_all()
    return cast("list[T]", values)


def check_all(*checks: Callable[[], object]) -> None:
    """Run every check and raise all failures as one error, as `Failures` does."""
    failures = Failures()
    for check in checks:
        failures.run(check)
    failures.raise_all()
