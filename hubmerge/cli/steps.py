"""hubmerge steps"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.refs import check_repo_id


@verb
def steps(
    session: Session,
    repos: Annotated[list[str], typer.Argument(help="Repositories: owner/name ...")],
) -> None:
    """List the step revisions of repositories, how each was found, and what its manifest tells."""
    asked = [check_repo_id(repo) for repo in repos]
    with session.connected() as hub:
        from hubmerge.flows.steps import describe_steps

        with session.progress() as progress:
            found = describe_steps(hub, asked, progress)
    rows = [
        (
            step.repo_id, step.step, step.revision, step.sha[:12], step.found, step.task or "-",
            percent(step.validation),
        )
        for step in found
    ]  # fmt: skip
    columns = ("repository", "step>", "revision", "commit", "found by", "task", "validation %>")
    session.show(table(columns, rows), [dataclasses.asdict(step) for step in found])
