"""What all commands share: the common options, access to the Hub, printing, and errors."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from hubmerge.cli.progress_lines import ProgressLines, format_amount
from hubmerge.errors import HubmergeError
from hubmerge.file_digests import remember_in
from hubmerge.hub.environment import connect, home
from hubmerge.progress import no_progress
from hubmerge.redaction import redact_tokens
from hubmerge.refs import parse_step_pattern, printable

if TYPE_CHECKING:
    from rich.console import Console

    from hubmerge.hub.client import Hub
    from hubmerge.scores import ScoreLog
    from hubmerge.trials import TrialLog


@dataclass(frozen=True)
class Session:
    """One run of a command: the options that every command has, the Hub, and where output goes."""

    hub: Annotated[
        str | None,
        typer.Option(
            "--hub",
            help="`local` is the embedded Hub. [HUBMERGE_HUB, else HF_ENDPOINT or huggingface.co]",
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print data as JSON on standard output.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False

    @property
    def console(self) -> Console:
        """Standard output; plain text, 120 columns wide, when it is not a terminal."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else 120
        return Console(width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)

    @property
    def score_log(self) -> ScoreLog:
        """Every score that was measured with this hubmerge home."""
        from hubmerge.scores import ScoreLog

        return ScoreLog(home() / "scores.jsonl")

    @property
    def trial_log(self) -> TrialLog:
        """Every merge that a selection measured in memory."""
        from hubmerge.trials import TrialLog

        return TrialLog(home() / "trials.jsonl")

    @property
    def home(self) -> Path:
        """The folder where hubmerge keeps its own files."""
        return home()

    @contextmanager
    def open_hub(self, step_pattern: str | None = None) -> Iterator[Hub]:
        """A connection to the Hub that lasts as long as the block.

        `step_pattern` is the value of --step-pattern; raises UsageError if it is not valid.
        """
        pattern = parse_step_pattern(step_pattern)
        remember_in(self.home)
        with connect(self.hub) as hub:
            yield dataclasses.replace(hub, step_pattern=pattern) if pattern else hub

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A progress bar on standard error, called as (description, done, total).

        Where that is not a terminal, a line a minute; with --quiet nothing.
        """
        if self.quiet:
            yield no_progress
            return
        if not sys.stderr.isatty():
            yield ProgressLines(self.print_message)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None, amount="")
            yield lambda description, done, total: bar.update(
                task,
                description=description,
                completed=done,
                total=total or done,
                amount=format_amount(done, total),
            )

    def print_message(self, text: str) -> None:
        """Print a sentence on standard error, unless --quiet was given."""
        if not self.quiet:
            with suppress(BrokenPipeError):  # the reader is gone; the work goes on
                print(printable_lines(text), file=sys.stderr)

    def print_result(self, table: object, data: object) -> None:
        """Print the result on standard output: the table, or with --json the data."""
        if self.as_json:
            print(json.dumps(data, indent=1, sort_keys=True))
        elif isinstance(table, str):
            print(redact_tokens(printable_lines(table)))
        else:
            self.console.print(table)


def command(
    function: Callable[..., None], extra_options: Sequence[inspect.Parameter] = ()
) -> Callable[..., None]:
    """Make a typer command of `function(session, ...)`: its own options, then the session's.

    A parameter whose type is a dataclass is a group of options, one for each field. The values of
    `extra_options` are passed to the function by name.
    """
    _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    groups: dict[str, Any] = {
        p.name: p.annotation for p in named if dataclasses.is_dataclass(p.annotation)
    }
    own = [
        option for p in named for option in (_fields(groups[p.name]) if p.name in groups else [p])
    ]
    options = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in (*extra_options, *own, *_fields(Session))
    ]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        session = _build(Session, values)
        grouped = {name: _build(group, values) for name, group in groups.items()}
        with _errors_as_messages(session.debug):
            function(session, **values, **grouped)

    del run.__wrapped__  # typer would look through it and see `session`
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in options}
    return run


def _fields(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as keyword parameters; a field without a default is required."""
    types = get_type_hints(group, include_extras=True)
    empty = inspect.Parameter.empty
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is dataclasses.MISSING else field.default,
            annotation=types[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _build(group: Any, values: dict[str, Any]) -> Any:
    """Take the values of a dataclass's fields out of `values`, and build it."""
    return group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})


@contextmanager
def _errors_as_messages(debug: bool) -> Iterator[None]:
    """Turn every error into one sentence, a hint and the documented exit code."""
    try:
        yield
    except typer.Exit:  # a result that has an exit code of its own
        raise
    except HubmergeError as error:
        if debug:
            _print_traceback()
        _print_error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        _print_error("Interrupted.", "Finished work is kept: run the same command again.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # `hubmerge steps ... | head` closed the pipe; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if debug:
            _print_traceback()
        prefix = f"{error.filename}: " if error.filename else ""
        message = f"{prefix}{error.strerror or error}."
        _print_error(message, "Fix this and run the same command again.")
        raise typer.Exit(1) from error
    except Exception as error:
        if debug:
            _print_traceback()
        _print_error(
            f"This is a bug in hubmerge: {type(error).__name__}: {error}",
            "Please report it with the output of --debug.",
        )
        raise typer.Exit(1) from error


def _print_error(message: str, hint: str) -> None:
    lines = [f"Error: {message}", *([hint] if hint else [])]
    print(redact_tokens(printable_lines("\n".join(lines))), file=sys.stderr)


def _print_traceback() -> None:
    print(redact_tokens(traceback.format_exc()), file=sys.stderr)


def printable_lines(text: str) -> str:
    """Text with every control character but the newline escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))
