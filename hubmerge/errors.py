"""Every way hubmerge says no, in one tree.

    HubmergeError                 exit 1   something is wrong, and here is the way out
    |-- UsageError                exit 2   what was typed cannot be meant
    |   `-- UnknownName           exit 2   a name we do not have, with the nearest ones we do
    |-- CheckpointError           exit 1   weights that cannot be read, or do not fit together
    |-- DataError                 exit 1   a data set or a task that cannot be used
    |-- TrainingDiverged          exit 1   a loss that is no longer a number, or explodes
    |-- OutOfMemory               exit 1   a training step that does not fit
    |-- Busy                      exit 75  another process is at it; the same command may work later
    |-- HubError                  exit 1   the Hub answered no
    |   |-- NotOnHub              exit 1   no such repository, revision or file
    |   |-- NoAccess              exit 1   the token may not do this
    |   `-- HubUnreachable        exit 75  no answer in time; the same command may work later
    `-- IntegrityError            exit 3   bytes, tags or bases are not what was promised

A message is one sentence that names the repository, file or tensor; a hint says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence


class HubmergeError(Exception):
    """A failure the user can act on: one sentence and a way out; `problems` if it is several."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems: tuple[str, ...] = (message,)


class UsageError(HubmergeError):
    """What was typed cannot be meant."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in a closed list, answered with its near matches."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        way_out = f"Did you mean {either(near)}?" if near else f"Known: {', '.join(names)}."
        super().__init__(f"Unknown {what} {name!r}.", way_out)
        self.near = near


class CheckpointError(HubmergeError):
    """Weights that cannot be read, or do not fit together."""


class DataError(HubmergeError):
    """A data set or a task that cannot be used."""


class TrainingDiverged(HubmergeError):
    """A loss that is no longer a number, or explodes."""


class OutOfMemory(HubmergeError):
    """A training step that does not fit into memory."""


class Busy(HubmergeError):
    """Another process is at it: the same command may work when that one is done."""

    exit_code = 75


class HubError(HubmergeError):
    """The Hub answered, and the answer is no."""


class NotOnHub(HubError):
    """No such repository, revision or file."""


class NoAccess(HubError):
    """The token may not do this, or there is none."""


class HubUnreachable(HubError):
    """No answer in time: nothing is lost, and the same command may work later."""

    exit_code = 75


class IntegrityError(HubmergeError):
    """Bytes, tags or bases that are not what they were promised to be."""

    exit_code = 3


def either(names: Sequence[str]) -> str:
    """Join names as people say them: "a", "a or b", "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def raise_together(error: type[HubmergeError], problems: Sequence[str], hint: str = "") -> None:
    """Raise all problems as one error, so that they are mended in one go; nothing for none."""
    if len(problems) == 1:
        raise error(problems[0], hint)
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        failure = error(f"{len(problems)} problems:{listed}", hint)
        failure.problems = tuple(problems)
        raise failure


def check_all(*checks: Callable[[], object]) -> None:
    """Make every check, and raise what all of them found as one error, of the first one's kind."""
    failures = []
    for check in checks:
        try:
            check()
        except HubmergeError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
        problems = [problem for failure in failures for problem in failure.problems]
        kind = type(failures[0])
        raise_together(UsageError if kind is UnknownName else kind, problems, " ".join(hints))
