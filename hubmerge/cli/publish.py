"""hubmerge publish"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import DryRun, Private
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.refs import check_repo_id, parse_ref, step_tag

if TYPE_CHECKING:
    from hubmerge.flows.publish import PreparedPublish


@command
def publish(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Folder with folders checkpoint-64, step64 ...")],
    to: Annotated[str, typer.Option(help="Repository: owner/name.")],
    base: Annotated[
        str | None, typer.Option(help="Base that the checkpoints were fine-tuned from.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task that the checkpoints were trained for.")
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a folder of checkpoints as tagged step revisions.

    The checkpoints can be those of a Trainer of transformers, or of hubmerge. The same command
    again, also after more training, publishes only the checkpoints that are new.

    Example: hubmerge publish ./output --to me/cars --base o/clip
    """
    repo_id = check_repo_id(to)
    with session.open_hub() as hub:
        from hubmerge.flows import publish as flow
        from hubmerge.tasks.lookup import find_task

        prepared = flow.prepare_publish(
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
    session.print_result(_steps_table(prepared, commits), _to_json(prepared, commits))


def _steps_table(prepared: PreparedPublish, commits: dict[int, str]) -> object:
    action = "published to" if commits else "would publish to"
    rows = [
        (item.step, step_tag(item.step), commits.get(item.step, "-")[:12], item.folder.name)
        for item in prepared.steps
    ]
    return make_table(("step>", "tag", "commit", "folder"), rows, title=f"{action} {prepared.to}")


def _to_json(prepared: PreparedPublish, commits: dict[int, str]) -> dict[str, object]:
    return {
        "repo": prepared.to,
        "steps": [item.step for item in prepared.steps],
        "commits": {step_tag(step): commit for step, commit in commits.items()},
        "manifest": prepared.manifest is not None,
    }
