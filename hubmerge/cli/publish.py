"""hubmerge publish"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import DryRun, Private
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.refs import check_repo_id, parse_ref, step_tag

if TYPE_CHECKING:
    from hubmerge.flows.publish import Prepared


@verb
def publish(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Folder of checkpoint-64, step64 and the like.")],
    to: Annotated[str, typer.Option(help="Repository: owner/name.")],
    base: Annotated[
        str | None, typer.Option(help="Base they were fine-tuned from, for their manifests.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task they were trained for, for their manifests.")
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a folder of checkpoints, a Trainer's or ours, as step revisions with their tags.

    Running it again, or after more training, publishes what is not published yet.
    """
    repo_id = check_repo_id(to)
    with session.connected() as hub:
        from hubmerge.flows import publish as flow
        from hubmerge.tasks.lookup import find_task

        prepared = flow.prepare(
            hub,
            folder.expanduser(),
            repo_id,
            parse_ref(base) if base else None,
            find_task(task) if task else None,
        )
        commits: dict[int, str] = {}
        if not dry_run:
            with session.progress() as progress:
                commits = flow.publish_steps(
                    hub, prepared, session.home / "publishing", progress, private=private
                )
    session.show(_table(prepared, commits), _data(prepared, commits))


def _table(prepared: Prepared, commits: dict[int, str]) -> object:
    said = "published to" if commits else "would publish to"
    rows = [
        (one.step, step_tag(one.step), commits.get(one.step, "-")[:12], one.folder.name)
        for one in prepared.steps
    ]
    return table(("step>", "tag", "commit", "folder"), rows, title=f"{said} {prepared.to}")


def _data(prepared: Prepared, commits: dict[int, str]) -> dict[str, object]:
    return {
        "repo": prepared.to,
        "steps": [one.step for one in prepared.steps],
        "commits": {step_tag(step): commit for step, commit in commits.items()},
        "manifest": prepared.manifest is not None,
    }
