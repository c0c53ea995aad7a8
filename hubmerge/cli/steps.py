"""hubmerge steps"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import can_print, line, percent, sparkline, table
from hubmerge.refs import check_repo_id

if TYPE_CHECKING:
    from hubmerge.flows.steps import Step

_OF_BEST = "best is the expert's own accuracy: what merges best is often an earlier step."


@verb
def steps(
    session: Session,
    repos: Annotated[list[str], typer.Argument(help="Repositories: owner/name ...")],
) -> None:
    """List the step revisions of repositories, how each was found, and what its manifest tells."""
    asked = [check_repo_id(repo) for repo in repos]
    with session.connected() as hub:
        from hubmerge.flows.steps import BEST, describe_steps

        with session.progress() as progress:
            found = describe_steps(hub, asked, progress)
    shown = Group(_table(found), *map(line, _curves(found)))
    session.show(shown, [dataclasses.asdict(step) for step in found])
    if any(BEST in step.marks for step in found):
        session.say(_OF_BEST)


def _table(found: Sequence[Step]) -> Table:
    annealed = any(step.anneal for step in found)
    columns = ["repository", "step>", "revision", "commit", "found by", "task", "validation %>"]
    rows = [
        [
            step.repo_id, step.step, step.revision, step.sha[:12], step.found, step.task or "-",
            percent(step.validation), *([step.anneal or "-"] if annealed else []),
            ", ".join(step.marks),
        ]
        for step in found
    ]  # fmt: skip
    return table([*columns, *(["anneal"] if annealed else []), "marks"], rows)


def _curves(found: Sequence[Step]) -> Iterator[str]:
    """For each repository its accuracy over the steps at a glance, and in numbers."""
    for repo, steps in groupby(found, key=lambda step: step.repo_id):
        points = [(one.step, one.validation) for one in steps if one.validation is not None]
        values = [value for _, value in points]
        if len(points) > 1 and can_print(bars := sparkline(values)):
            (first, start), (last, end) = points[0], points[-1]
            scale = f"{percent(min(values))} to {percent(max(values))} %"
            yield (
                f"{repo}  {percent(start)} {bars} {percent(end)}  "
                f"(steps {first} to {last}, bars from {scale})"
            )
