"""hubmerge verify"""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.verify import Check

_WAY_OUT = "Do not use it before you know why."


@verb
def verify(
    session: Session,
    model: Annotated[str, typer.Argument(help="A folder or a revision that hubmerge made.")],
    lock: Annotated[
        Path | None, typer.Option(help="The lock it was made from. [the one beside it]")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Merge it again and compare every byte.")
    ] = False,
) -> None:
    """Check files, lock and pinned experts of a model; everything that is wrong ends in exit 3."""
    ref = parse_ref(model)
    session.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = tempfile.TemporaryDirectory(dir=session.home) if rebuild else nullcontext()
    with session.connected() as hub, scratch as folder, session.progress() as progress:
        from hubmerge.flows.verify import verify as look

        checks = look(hub, ref, lock, Path(folder) if folder else None, progress)
    session.show(_table(str(ref), checks), [dataclasses.asdict(check) for check in checks])
    raise_together(IntegrityError, [one.problem for one in checks if one.problem], _WAY_OUT)


def _table(name: str, checks: list[Check]) -> object:
    rows = [(one.what, one.found, "WRONG" if one.problem else "ok") for one in checks]
    wrong = sum(one.problem is not None for one in checks)
    title = f"{name}: {len(checks)} checked, {wrong or 'none'} wrong"
    return table(("checked", "found", ""), rows, title=title)
