"""hubmerge steps"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import can_print, line, percent, sparkline, table
from hubmerge.errors import UsageError
from hubmerge.refs import check_repo_id

if TYPE_CHECKING:
    from hubmerge.flows.search import Candidate
    from hubmerge.flows.steps import Step

_OF_BEST = "best is the expert's own accuracy: what merges best is often an earlier step."


@verb
def steps(
    session: Session,
    repos: Annotated[
        list[str] | None, typer.Argument(help="Repositories: owner/name ...", show_default=False)
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Look for experts over the Hub instead: base=owner/name author=name tag=word "
            "collection=owner/slug; all that is given must hold."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most repositories to look at.")] = 50,
) -> None:
    """List the step revisions of repositories, how each was found, and what its manifest tells.

    Without names for its steps, a repository's commit history is read: what a Trainer pushed.
    """
    if search:
        _search(session, [*search, *(repos or [])], limit)
        return
    if not repos:
        raise UsageError(
            "No repository is named.", "Write owner/name, or --search base=owner/name."
        )
    asked = [check_repo_id(repo) for repo in repos]
    with session.connected() as hub:
        from hubmerge.flows.steps import BEST, describe_steps

        with session.progress() as progress:
            found = describe_steps(hub, asked, progress)
    shown = Group(_table(found), *map(line, _curves(found)))
    session.show(shown, [dataclasses.asdict(step) for step in found])
    if any(BEST in step.marks for step in found):
        session.say(_OF_BEST)


def _search(session: Session, words: list[str], limit: int) -> None:
    with session.connected() as hub:
        from hubmerge.flows.search import find_experts
        from hubmerge.hub.search import parse_query

        query = parse_query(words)
        with session.progress() as progress:
            found = find_experts(hub, query, limit, progress)
    session.show(_candidates(found), [dataclasses.asdict(one) for one in found])
    if len(found) == limit:
        session.say(f"There may be more: these are the first {limit}. --limit shows more.")


def _candidates(found: Sequence[Candidate]) -> Table:
    columns = ["repository", "kind", "steps>", "last>", "task", "licence", "fits", "why"]
    rows = [
        [
            one.repo_id, one.kind, one.steps, _or_dash(one.last_step), one.task or "-",
            one.licence or "-", one.fits, one.why,
        ]
        for one in found
    ]  # fmt: skip
    return table(columns, rows)


def _table(found: Sequence[Step]) -> Table:
    """A row per step; a column that says nothing in any row is left out."""
    has = {
        "run": any(step.run is not None and step.run > 1 for step in found),
        "revision": any(_named(step) for step in found),
        "sure %": any(step.confidence < 1 for step in found),
        "task": any(step.task for step in found),
        "validation %": any(step.validation is not None for step in found),
        "anneal": any(step.anneal for step in found),
        "note": any(step.note for step in found),
    }
    columns = [
        "repository", "run>", "step>", "revision", "commit", "found by", "sure %>", "task",
        "validation %>", "anneal", "marks", "note",
    ]  # fmt: skip
    shown = [has.get(column.rstrip(">"), True) for column in columns]
    rows = [
        [
            step.repo_id, _or_dash(step.run), _or_dash(step.step), _named(step) or "-",
            step.sha[:12], step.found, f"{100 * step.confidence:.0f}", step.task or "-",
            percent(step.validation), step.anneal or "-", ", ".join(step.marks), step.note,
        ]
        for step in found
    ]  # fmt: skip
    return table(list(compress(columns, shown)), [list(compress(row, shown)) for row in rows])


def _named(step: Step) -> str:
    """The tag, branch or folder; what is mined has no name beside its commit and folder."""
    return (step.subfolder or "") if step.sha.startswith(step.revision[:12]) else step.revision


def _or_dash(number: int | None) -> object:
    return "-" if number is None else number


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
