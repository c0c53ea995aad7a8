"""hubmerge verify"""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import (
    Columns,
    Device,
    IncludePath,
    Tasks,
    find_tasks,
    split_names,
)
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.check import Check

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
    evidence: Annotated[
        bool,
        typer.Option("--evidence", help="Measure the picks of the lock again on validation."),
    ] = False,
    tasks: Tasks = None,
    columns: Columns = None,
    include_path: IncludePath = None,
    device: Device = None,
) -> None:
    """Check files, lock and pinned experts of a model, or a lock.

    Exit code 3: something does not match what the manifest or the lock records.

    Example: hubmerge verify ./merged --rebuild
    """
    lock_alone = Path(model) if Path(model).is_file() else None
    if lock_alone and (lock or rebuild):
        raise UsageError(
            f"{model} is a lock: --lock and --rebuild are for the merge made from it.",
            "Name the merge.",
        )
    if (tasks or columns or include_path or device) and not evidence:
        raise UsageError(
            "--tasks, --columns, --include-path and --device are for --evidence.", "Leave them out."
        )
    session.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = (
        tempfile.TemporaryDirectory(dir=session.home) if rebuild or evidence else nullcontext()
    )
    with session.open_hub() as hub, scratch as folder, session.progress() as progress:
        from hubmerge.flows.verify import read_lock_of, verify_lock
        from hubmerge.flows.verify import verify as look

        ref, checks = None if lock_alone else parse_ref(model), []
        if ref is None:
            checks += verify_lock(hub, Path(model))
        else:
            checks += look(hub, ref, lock, Path(folder) if folder and rebuild else None, progress)
        if evidence:
            from hubmerge.flows.evidence import check_evidence

            of = read_lock_of(hub, ref, lock_alone or lock)
            own = find_tasks(split_names(tasks), columns, include_path)
            checks += check_evidence(hub, of, own, Path(str(folder)), progress, device)
    session.print_result(
        _checks_table(model, checks), [dataclasses.asdict(check) for check in checks]
    )
    raise_together(IntegrityError, [check.problem for check in checks if check.problem], _HINT)


def _checks_table(name: str, checks: list[Check]) -> object:
    rows = [(check.what, check.found, "WRONG" if check.problem else "ok") for check in checks]
    wrong = sum(check.problem is not None for check in checks)
    title = f"{name}: {len(checks)} checked, {wrong or 'none'} wrong"
    return make_table(("checked", "found", ""), rows, title=title)
