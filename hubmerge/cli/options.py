"""Options that several verbs share, and the words they become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from hubmerge.cards.licence import licence_id
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, parse_ref

SplitName = Literal["test", "validation", "train"]
Split = Annotated[SplitName, typer.Option(help="Choose on validation, report on test.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")]
Device = Annotated[
    str | None, typer.Option(help="Where to compute: cpu, cuda ... [a GPU if there is one]")
]

Columns = Annotated[
    str | None,
    typer.Option(help="Columns of the data, where they are not guessed: text=review,label=stars."),
]

Licence = Annotated[
    str | None,
    typer.Option(
        "--license", "--licence", help="Licence of the result. [follows from the experts']"
    ),
]


def spelled(licence: str | None) -> str | None:
    """A licence as the Hub spells it; raises UsageError for what is none."""
    if licence is None:
        return None
    if (found := licence_id(licence)) is None:
        raise UsageError(f"--license {licence!r} is no licence.", "Write one such as apache-2.0.")
    return found


def repository(text: str | None) -> ModelRef | None:
    """What --push names: a repository, perhaps with a tag; raises UsageError for a folder."""
    if text is None:
        return None
    ref = parse_ref(text)
    if ref.repo_id is None or ref.subfolder:
        raise UsageError(f"--push {text!r} is not a repository.", "Write owner/name.")
    return ref


def settings_of(texts: Iterable[str], example: str) -> dict[str, str]:
    """What --set says, by name; raises UsageError for what is not name=value, or said twice."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--set {text!r} is not name=value.", f"Write --set {example}.")
        if name.strip() in settings:
            raise UsageError(f"--set {name.strip()} is given twice.", "Give it once.")
        settings[name.strip()] = value.strip()
    return settings
