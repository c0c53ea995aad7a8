"""What every verb shares: the common options, the Hub, how it prints, and how it fails."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hubmerge.errors import HubmergeError
from hubmerge.hub.environment import connect, home
from hubmerge.refs import printable
from hubmerge.scores import ScoreLog
from hubmerge.trials import TrialLog

if TYPE_CHECKING:
    from hubmerge.hub.client import Hub

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")

_COMMON = {
    "hub": (
        Annotated[
            str | None,
            typer.Option(
                "--hub",
                help="`local` is the embedded Hub. [HUBMERGE_HUB, else HF_ENDPOINT or "
                "huggingface.co]",
            ),
        ],
        None,
    ),
    "as_json": (
        Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")], False),
    "debug": (
        Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")],
        False,
    ),
}


@dataclass(frozen=True)
class Session:
    """One run of a verb: which Hub it works with, and how it speaks."""

    hub: str | None = None
    as_json: bool = False
    quiet: bool = False
    debug: bool = False

    @property
    def out(self) -> Console:
        """Where results go: standard output, plain when it is no terminal."""
        width = None if sys.stdout.isatty() else 120
        return Console(width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)

    @property
    def log(self) -> ScoreLog:
        """Every score that was ever measured here."""
        return ScoreLog(home() / "scores.jsonl")

    @property
    def trials(self) -> TrialLog:
        """Every merge that was measured here and never written."""
        return TrialLog(home() / "trials.jsonl")

    @property
    def home(self) -> Path:
        return home()

    @contextmanager
    def connected(self) -> Iterator[Hub]:
        """The Hub, for as long as the block runs."""
        with connect(self.hub) as hub:
            yield hub

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar on standard error that takes (what, done, total); silent when nobody watches."""
        watched = sys.stderr.isatty() and not self.quiet
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not watched,
            transient=True,
        ) as bar:
            line = bar.add_task("", total=None)
            yield lambda what, done, total: bar.update(
                line, description=what, completed=done, total=total
            )

    def say(self, text: str) -> None:
        """A sentence for a human, on standard error."""
        if not self.quiet:
            with suppress(BrokenPipeError):  # nobody listens, and the work goes on
                print(printable_lines(text), file=sys.stderr)

    def show(self, table: object, data: object) -> None:
        """The result: a table for humans, or its data as JSON."""
        if self.as_json:
            print(json.dumps(data, indent=1, sort_keys=True))
        elif isinstance(table, str):
            print(_without_tokens(printable_lines(table)))
        else:
            self.out.print(table)


def verb(work: Callable[..., None], more: Sequence[inspect.Parameter] = ()) -> Callable[..., None]:
    """Make `work(session, ...)` a command: its own options first, then those that all share.

    `more` are options that it takes by `**`.
    """
    signature = inspect.signature(work, eval_str=True)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [*more, *named[1:]]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _COMMON.items()
    ]

    @functools.wraps(work)
    def run(**values: Any) -> None:
        session = Session(**{name: values.pop(name) for name in _COMMON})
        with _reporting(session.debug):
            work(session, **values)

    del run.__wrapped__  # typer would look through it and see `session`
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*keyword, *shared)}
    return run


@contextmanager
def _reporting(debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one sentence, a way out and the contract's exit code."""
    try:
        yield
    except typer.Exit:  # an answer that has an exit code of its own
        raise
    except HubmergeError as error:
        if debug:
            _complain_at_length()
        _complain(error.message, error.hint)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        _complain("Interrupted.", "Nothing that was finished is lost: run the same command again.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # `hubmerge steps ... | head` closed the pipe; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if debug:
            _complain_at_length()
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{error.strerror or error}.", "Mend it and run the same command again.")
        raise typer.Exit(1) from error
    except Exception as error:
        if debug:
            _complain_at_length()
        _complain(
            f"hubmerge failed in a way it should not: {type(error).__name__}: {error}",
            "Please report it with what --debug prints.",
        )
        raise typer.Exit(1) from error


def _complain(message: str, hint: str) -> None:
    lines = [f"Error: {message}", *([hint] if hint else [])]
    print(_without_tokens(printable_lines("\n".join(lines))), file=sys.stderr)


def _complain_at_length() -> None:
    print(_without_tokens(traceback.format_exc()), file=sys.stderr)


def _without_tokens(text: str) -> str:
    return _TOKEN.sub("hf_***", text)


def printable_lines(text: str) -> str:
    """Text with every control character but the newline escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))
