"""Options that several verbs share, and the words they become."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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


def repository(text: str | None) -> ModelRef | None:
    """What --push names: a repository, perhaps with a tag; raises UsageError for a folder."""
    if text is None:
        return None
    ref = parse_ref(text)
    if ref.repo_id is None or ref.subfolder:
        raise UsageError(f"--push {text!r} is not a repository.", "Write owner/name.")
    return ref
