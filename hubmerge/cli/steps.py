"""hubmerge steps"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from hubmerge.cli.options import StepPattern
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import can_print, format_percent, make_table, sparkline, text_line
from hubmerge.errors import UsageError
from hubmerge.refs import check_repo_id

if TYPE_CHECKING:
    from hubmerge.flows.search import FoundModel
    from hubmerge.flows.steps import Step

_BEST_NOTE = "best means the expert's own accuracy: an earlier step often merges better."


@command
def steps(
    session: Session,
    repos: Annotated[
        list[str] | None, typer.Argument(help="Repositories: owner/name ...", show_default=False)
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Search the Hub for experts that match all of: base=owner/name author=name "
            "tag=word collection=owner/slug."
        ),
    ] = None,
    step_pattern: StepPattern = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most repositories to look at.")] = 50,
) -> None:
    """List the step revisions of repositories, or find experts.

    If a repository has no tags or branches for its steps, they are found in its commit history.

    Example: hubmerge steps me/mnist me/svhn
    """
    if search:
        _search(session, [*search, *(repos or [])], limit)
        return
    if not repos:
        raise UsageError(
            "No repository is named.", "Write owner/name, or --search base=owner/name."
        )
    repo_ids = [check_repo_id(repo) for repo in repos]
    with session.open_hub(step_pattern) as hub:
        from hubmerge.flows.steps import BEST, describe_steps

        with session.progress() as progress:
            listed = describe_steps(hub, repo_ids, progress)
    tables = Group(_steps_table(listed), *map(text_line, _curve_lines(listed)))
    session.print_result(tables, [dataclasses.asdict(step) for step in listed])
    if any(BEST in step.marks for step in listed):
        session.print_message(_BEST_NOTE)


def _search(session: Session, words: list[str], limit: int) -> None:
    with session.open_hub() as hub:
        from hubmerge.flows.search import find_experts
        from hubmerge.hub.search import parse_query

        query = parse_query(words)
        with session.progress() as progress:
            matches = find_experts(hub, query, limit, progress)
    session.print_result(_candidates_table(matches), [dataclasses.asdict(m) for m in matches])
    if len(matches) == limit:
        session.print_message(f"Only the first {limit} are listed. --limit shows more.")


def _candidates_table(models: Sequence[FoundModel]) -> Table:
    columns = ["repository", "kind", "steps>", "last>", "task", "licence", "fits", "why"]
    rows = [
        [
            model.repo_id, model.kind, model.steps, _or_dash(model.last_step), model.task or "-",
            model.licence or "-", model.fits, model.why,
        ]
        for model in models
    ]  # fmt: skip
    return make_table(columns, rows)


def _steps_table(listed: Sequence[Step]) -> Table:
    """A row for each step; columns without any value are left out."""
    has_values = {
        "run": any(step.run is not None and step.run > 1 for step in listed),
        "revision": any(_revision_name(step) for step in listed),
        "sure %": any(step.confidence < 1 for step in listed),
        "task": any(step.task for step in listed),
        "validation %": any(step.validation is not None for step in listed),
        "anneal": any(step.anneal for step in listed),
        "note": any(step.note for step in listed),
    }
    columns = [
        "repository", "run>", "step>", "revision", "commit", "found by", "sure %>", "task",
        "validation %>", "anneal", "marks", "note",
    ]  # fmt: skip
    shown = [has_values.get(column.rstrip(">"), True) for column in columns]
    rows = [
        [
            step.repo_id, _or_dash(step.run), _or_dash(step.step), _revision_name(step) or "-",
            step.sha[:12], step.found, f"{100 * step.confidence:.0f}", step.task or "-",
            format_percent(step.validation), step.anneal or "-", ", ".join(step.marks), step.note,
        ]
        for step in listed
    ]  # fmt: skip
    return make_table(list(compress(columns, shown)), [list(compress(row, shown)) for row in rows])


def _revision_name(step: Step) -> str:
    """The tag, branch or folder; a step found in the history has no name, or a folder."""
    return (step.subfolder or "") if step.sha.startswith(step.revision[:12]) else step.revision


def _or_dash(number: int | None) -> object:
    return "-" if number is None else number


def _curve_lines(listed: Sequence[Step]) -> Iterator[str]:
    """The validation accuracy over the steps of each repository, as bars with their range."""
    for repo, steps in groupby(listed, key=lambda step: step.repo_id):
        points = [(step.step, step.validation) for step in steps if step.validation is not None]
        values = [value for _, value in points]
        if len(points) > 1 and can_print(bars := sparkline(values)):
            (first, start), (last, end) = points[0], points[-1]
            scale = f"{format_percent(min(values))} to {format_percent(max(values))} %"
            yield (
                f"{repo}  {format_percent(start)} {bars} {format_percent(end)}  "
                f"(steps {first} to {last}, bars from {scale})"
            )
