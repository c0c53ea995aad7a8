"""hubmerge hub usage, gc, delete: the disk of the embedded Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hubmerge.byte_sizes import format_bytes
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import NotOnHub, UsageError
from hubmerge.hub.environment import hub_folder
from hubmerge.server.state import ServerState

Option, Argument = typer.Option, typer.Argument
Data = Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")]
_COLUMNS = ("repository", "kind", "commits", "git", "large files", "of these only here")


class RepoKind(StrEnum):
    """What a repository holds."""

    model = "model"
    dataset = "dataset"
    space = "space"


@command
def usage(session: Session, data: Data = None) -> None:
    """Show how much disk each repository of the embedded Hub uses.

    Large files are stored once, however many commits and repositories have them.

    Example: hubmerge hub usage
    """
    with _open(data) as server:
        found = _send(server, "GET", "/api/hubmerge/usage")
    rows = [
        (
            row["repository"],
            row["kind"].removesuffix("s"),
            row["commits"],
            *map(format_bytes, (row["git_bytes"], row["large_bytes"], row["own_bytes"])),
        )
        for row in sorted(found["repositories"], key=lambda row: -row["own_bytes"])
    ]
    session.print_result(make_table(_COLUMNS, rows), found)
    session.print_message(
        f"Large files: {format_bytes(found['large_bytes'])}, of which no ref reaches "
        f"{format_bytes(found['unreachable_bytes'])}. Unfinished uploads: "
        f"{format_bytes(found['upload_bytes'])}. Free: {format_bytes(found['free_bytes'])}."
    )


@command
def gc(
    session: Session,
    data: Data = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show what would be deleted.")] = False,
) -> None:
    """Delete from disk what no repository of the embedded Hub needs any more.

    Kept is what a branch, a tag, a pull request, or a hubmerge.lock or hubmerge.json in one of
    their commits reaches, in any repository; and what was uploaded in the last hour, because its
    commit may follow.

    Example: hubmerge hub gc --dry-run
    """
    with _open(data) as server:
        found = _send(server, "POST", "/api/hubmerge/gc", {"dryRun": dry_run})
    rows = [
        ("large files", found["large_files"], format_bytes(found["large_bytes"])),
        ("git objects", found["git_objects"], format_bytes(found["git_bytes"])),
        ("unfinished uploads", "", format_bytes(found["upload_bytes"])),
        ("in all", "", format_bytes(found["total_bytes"])),
    ]
    done = "would be deleted" if dry_run else "deleted"
    session.print_result(make_table((done, "number", "bytes"), rows), {**found, "dry_run": dry_run})
    if young := found["young_bytes"]:
        session.print_message(
            f"Kept {format_bytes(young)} of the last hour: a commit may still name them."
        )


@command
def delete(
    session: Session,
    repo: Annotated[str, Argument(help="OWNER/NAME.")],
    data: Data = None,
    kind: Annotated[RepoKind, Option(help="What it holds.")] = RepoKind.model,
    yes: Annotated[bool, Option("--yes", help="Delete it; without this it is only shown.")] = False,
) -> None:
    """Delete a repository of the embedded Hub, with all its commits and tags, for good.

    Its large files stay on disk until `hubmerge hub gc`.

    Example: hubmerge hub delete demo/mnist --yes
    """
    owner, _, name = repo.partition("/")
    with _open(data) as server:
        found = _send(server, "GET", "/api/hubmerge/usage")["repositories"]
        known = {(row["repository"], row["kind"]): row for row in found}
        row = known.get((repo, f"{kind.value}s"))
        if row is None:
            raise NotOnHub(
                f"This Hub has no {kind.value} {repo[:200]!r}.",
                "`hubmerge hub usage` lists all repositories; --kind is one of model, dataset, "
                "space.",
            )
        size = format_bytes(row["own_bytes"])
        if not yes:
            raise UsageError(
                f"{repo} has {row['commits']} commits, and {size} of large files that no "
                "other repository has.",
                "Add --yes to delete it for good.",
            )
        fields = {"organization": owner, "name": name, "type": kind.value}
        _send(server, "DELETE", "/api/repos/delete", fields)
    session.print_message(f"Deleted {repo}; `hubmerge hub gc` frees {size}.")


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `hubmerge hub`."""
    for function in (usage, gc, delete):
        app.command(function.__name__)(function)


@contextmanager
def _open(data: Path | None) -> Iterator[ServerState]:
    from hubmerge.server.leases import lease

    with lease(data or hub_folder()) as server:
        yield server


def _send(server: ServerState, method: str, path: str, body: Any = None) -> dict[str, Any]:
    from hubmerge.server.operator import send_request

    return send_request(server, method, path, body)
