"""hubmerge select"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hubmerge.cards.figures import heat_map_picture, selection_picture
from hubmerge.cards.selection import CSV, CURVES, HEAT_MAP, selection_csv
from hubmerge.cli.options import Columns, Device, DryRun
from hubmerge.cli.select_moe import asked_mixture, choose_start
from hubmerge.cli.selection_tables import Choice, shown, verdict
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.durable import write_whole
from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.lock import NAME, Lock, parse_lock, read_lock
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import Prepared, Request
    from hubmerge.hub.client import Hub
    from hubmerge.progress import Progress

Option = typer.Option
INCONCLUSIVE = 4
_BAND = 1.0
_BUDGET = re.compile(r"([1-9]\d{0,6})(m|h|)")


@verb
def select(
    session: Session,
    repos: Annotated[list[str], typer.Argument(help="Repositories of experts: owner/name ...")],
    target: Annotated[
        str, Option(help="What the steps are chosen for: a merge method, or moe for a mixture.")
    ],
    policy: Annotated[
        str | None,
        Option(help="Whose choice to take: last, early-stop, uniform ... [the best on validation]"),
    ] = None,
    tasks: Annotated[
        str | None, Option(help="Tasks, where manifests name none: one for each repository.")
    ] = None,
    columns: Columns = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", help="Option of `hubmerge moerge`, for moe: train_steps=300, lr=2e-4 ..."),
    ] = None,
    base: Annotated[str | None, Option(help="Base of the experts, if they do not name it.")] = None,
    budget: Annotated[
        str | None,
        Option(
            help="Most merges to measure, 200, or training steps of moe, or time, 30m or 2h. "
            "[no end]"
        ),
    ] = None,
    lock: Annotated[Path, Option(help="Where the lock is written.")] = Path(NAME),
    out: Annotated[
        Path | None, Option(help="Folder for heatmap.png, curves.png and selection.csv. [none]")
    ] = None,
    against: Annotated[
        Path | None, Option(help="An earlier lock, whose choice is to be beaten.")
    ] = None,
    band: Annotated[
        float, Option(min=0, help="Standard errors within which the earliest steps win.")
    ] = _BAND,
    exhaustive: Annotated[
        bool,
        Option(
            "--exhaustive",
            help="Every point of the paper's grid on all examples; of moe, every start to the end.",
        ),
    ] = False,
    seed: Annotated[int, Option(min=0, help="Seed of the bootstrap.")] = 0,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Choose the step of each expert for a merge, on validation data alone, and pin it in a lock.

    Of a mixture, the steps that it starts from, by training it for a while from many. Exits with 4
    when the choice is not better beyond the noise than the last steps, or for a mixture, than an
    early start.
    """
    is_mixture = target == MOE
    if is_mixture:
        _check_mixture(against, band)
    elif settings:
        raise UsageError(
            "--set says how a mixture is trained; of a merge, selecting tunes the parameters.",
            "Leave it out, or choose for --target moe.",
        )
    asked = asked_mixture(settings or []) if is_mixture else None
    refs = tuple(parse_ref(text) for text in repos)
    earlier = _read(against) if against else None
    merges, seconds = _budget(budget)
    _check_places(lock, out)
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    with session.connected() as hub:
        from hubmerge.choosing.merge_selection import Request
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task, names_its_columns

        said = read_columns(columns) if columns else None
        named = [find_task(name, None if names_its_columns(name) else said) for name in names]
        request = Request(
            repos=refs,
            method=target,
            policy=policy,
            tasks=tuple(named),
            base=parse_ref(base) if base else None,
            against=earlier,
            merges=merges,
            seconds=seconds,
            seed=seed,
            band=band,
            exhaustive=exhaustive,
            device=device,
            typed=_typed(settings or [], tasks=tasks, columns=columns, against=against),
        )
        with session.progress() as progress:
            if asked is not None:
                choice = choose_start(session, hub, request, asked, dry_run, progress)
            else:
                choice = _choose_steps(session, hub, request, dry_run, progress)
    if choice is None:
        return
    made = choice.lock
    _keep(made, lock, session.home / "locks")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / HEAT_MAP, heat_map_picture(made), mode=0o644)
        write_whole(out / CURVES, selection_picture(made), mode=0o644)
        write_whole(out / CSV, selection_csv(made).encode(), mode=0o644)
    session.show(choice.shown, choice.data)
    for sentence in choice.said:
        session.say(sentence)
    session.say(choice.verdict(lock))
    if not made.conclusive:
        raise typer.Exit(INCONCLUSIVE)


def _choose_steps(
    session: Session, hub: Hub, request: Request, dry_run: bool, progress: Progress
) -> Choice | None:
    """Choose steps for a merge; None after a dry run, which is shown."""
    from hubmerge.flows import select as flow

    prepared = flow.prepare(hub, request, progress)
    for note in flow.few_rows({one.task.name: len(one.order) for one in prepared.stages}):
        session.say(f"Note: {note}")
    if dry_run:
        session.show(_plan(prepared), _plan_data(prepared))
        return None
    selected = flow.select(prepared, session.trials, progress)
    made = selected.lock
    return Choice(
        lock=made,
        shown=shown(made),
        data=json.loads(made.to_bytes()),
        said=[f"The budget ended policy {name} early." for name in made.cut],
        verdict=partial(verdict, made, selected.seconds),
    )


def _check_mixture(against: Path | None, band: float) -> None:
    """Options of a merge's selection that have no say in a mixture's."""
    problems = []
    if against is not None:
        problems.append("--against is for merges: a mixture's start is held against the null.")
    if band != _BAND:
        problems.append("--band is for merges: a mixture's start must beat the null beyond 95 %.")
    raise_together(UsageError, problems, "Leave it out.")


def _budget(text: str | None) -> tuple[int | None, float | None]:
    """Merges, or seconds."""
    if text is None:
        return None, None
    found = _BUDGET.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--budget {text!r} is no budget.", "Write 200 merges, 30m or 2h.")
    number, unit = int(found[1]), found[2]
    return (number, None) if not unit else (None, number * {"m": 60.0, "h": 3600.0}[unit])


def _read(path: Path) -> Lock:
    return parse_lock(read_lock(path), str(path))


def _typed(settings: Sequence[str], **options: object) -> tuple[str, ...]:
    """Options as they were typed, for the lock to repeat."""
    said = [(name, str(value)) for name, value in options.items() if value is not None]
    said += [("set", setting) for setting in settings]
    return tuple(word for name, value in said for word in (f"--{name}", value))


def _check_places(path: Path, out: Path | None) -> None:
    """A file that is no lock was surely not meant to be replaced by one."""
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is no folder.", "Choose another place.")
    if path.is_dir():
        raise UsageError(f"--lock {path} is a folder.", f"Write --lock {path / NAME}.")
    if path.exists():
        try:
            _read(path)
        except IntegrityError as error:
            raise UsageError(
                f"{path} is there already, and is no lock.", "Choose another place with --lock."
            ) from error
    elif not path.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {path.absolute().parent}.", "Make it first.")


def _keep(made: Lock, path: Path, known: Path) -> None:
    """Write the lock, and a copy among those that `hubmerge retain` keeps checkpoints for."""
    data = made.to_bytes()
    known.mkdir(parents=True, exist_ok=True)
    write_whole(known / f"{hashlib.sha256(data).hexdigest()[:12]}.lock", data)
    write_whole(path, data, mode=0o644)


def _plan(prepared: Prepared) -> Table:
    pool = prepared.pool
    rows: Sequence[tuple[object, ...]] = [
        (task.name, len(its), " ".join(str(one.step) for one in its), len(stage.order))
        for task, its, stage in zip(pool.tasks, pool.candidates, prepared.stages, strict=True)
    ]
    title = f"would choose for {prepared.method.name}: {', '.join(prepared.order)}"
    return table(("task", "candidates>", "steps", "validation rows>"), rows, title=title)


def _plan_data(prepared: Prepared) -> dict[str, object]:
    pool = prepared.pool
    return {
        "target": prepared.method.name,
        "policies": prepared.order,
        "tasks": {
            task.id: {"candidates": [one.source.label for one in its], "rows": len(stage.order)}
            for task, its, stage in zip(pool.tasks, pool.candidates, prepared.stages, strict=True)
        },
    }
