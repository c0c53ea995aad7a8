"""hubmerge verify"""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.verify import Check

_HINT = "Do not use the model before you know the reason."


@command
def verify(
    session: Session,
    model: Annotated[str, typer.Argument(help="A folder or a revision made by hubmerge.")],
    lock: Annotated[
        Path | None, typer.Option(help="The lock it was made from. [the one in its folder]")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Merge again and compare every byte.")
    ] = False,
) -> None:
    """Check files, lock and pinned experts of a model.

    Exit code 3: something does not match what the manifest records.

    Example: hubmerge verify ./merged --rebuild
    """
    ref = parse_ref(model)
    session.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = tempfile.TemporaryDirectory(dir=session.home) if rebuild else nullcontext()
    with session.open_hub() as hub, scratch as folder, session.progress() as progress:
        from hubmerge.flows.verify import verify as look

        checks = look(hub, ref, lock, Path(folder) if folder else None, progress)
    session.print_result(
        _checks_table(str(ref), checks), [dataclasses.asdict(check) for check in checks]
    )
    raise_together(IntegrityError, [check.problem for check in checks if check.problem], _HINT)


def _checks_table(name: str, checks: list[Check]) -> object:
    rows = [(check.what, check.found, "WRONG" if check.problem else "ok") for check in checks]
    wrong = sum(check.problem is not None for check in checks)
    title = f"{name}: {len(checks)} checked, {wrong or 'none'} wrong"
    return make_table(("checked", "found", ""), rows, title=title)
