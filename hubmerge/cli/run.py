"""hubmerge run"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from hubmerge.cli.options import DryRun
from hubmerge.cli.run_emit import Emitted, launch, typed, write_launch
from hubmerge.cli.run_engine import EngineName, check_weights, open_engine, served
from hubmerge.cli.run_progress import Watching
from hubmerge.cli.run_tables import claim_table, cost_table, end_data, failure_table, plan_data
from hubmerge.cli.session import Session, verb
from hubmerge.errors import HubmergeError, UsageError, raise_together

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import Order
    from hubmerge.reproduce.result_files import Told
    from hubmerge.reproduce.runner import Outcome
    from hubmerge.reproduce.store import Store
    from hubmerge.reproduce.unit import Shop, Unit

Option = typer.Option
_WORK = Path("build/recipes")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked of a run, beside which recipes."""

    engine: EngineName
    address: str | None
    workers: int | None
    retries: int
    any_code: bool


@verb
def run(
    session: Session,
    recipes: Annotated[
        list[Path], typer.Argument(help="Recipes, as folders: recipes/NAME; they share units.")
    ],
    profile: Annotated[
        str, Option(help="mini: offline, on CPUs; paper: as published; smoke: to see it run.")
    ] = "mini",
    engine: Annotated[
        EngineName, Option(help="Processes on this machine, or a Ray cluster (hubmerge[ray]).")
    ] = "local",
    ray_address: Annotated[
        str | None,
        Option(help="Ray cluster, or auto. [RAY_ADDRESS, else one that is started here]"),
    ] = None,
    work: Annotated[Path, Option(help="Folder of all that is known and made.")] = _WORK,
    workers: Annotated[
        int | None, Option(min=1, help="Most units at once. [as many as the cores have room for]")
    ] = None,
    only: Annotated[
        str | None, Option(help="Units to make, by key: KEY,KEY ... What they need must be there.")
    ] = None,
    retries: Annotated[
        int, Option(min=0, help="More tries for units in passing trouble, or whose worker died.")
    ] = 2,
    any_code: Annotated[
        bool, Option("--any-code", help="Take results that other code than today's measured.")
    ] = False,
    owner: Annotated[
        str | None, Option(help="Whose repositories weights are pushed to. [recipes, embedded Hub]")
    ] = None,
    check: Annotated[
        bool, Option("--check", help="Fail when a number leaves its band in expected.json.")
    ] = False,
    emit: Annotated[
        Emitted | None, Option(help="Run nothing; write the launch for a cluster or for HF Jobs.")
    ] = None,
    out: Annotated[Path | None, Option(help="File for --emit. [standard output]")] = None,
    dry_run: DryRun = False,
) -> None:
    """Measure figures and tables of the paper: what is missing is made, and results are told.

    Everything made is kept, so the same command goes on where another ended.
    """
    from hubmerge.reproduce.code_digest import code_version
    from hubmerge.reproduce.combined_plan import order
    from hubmerge.reproduce.store import Store

    if out and not emit:
        raise UsageError("--out names the file of --emit.", "Say --emit slurm or --emit hf-jobs.")
    asked = Asked(engine, ray_address, workers, retries, any_code)
    ordered = order(list(dict.fromkeys(recipes)), profile)
    units = ordered.chosen(_keys(only)) if only else ordered.units
    store = Store(work.resolve(), code_version())
    if dry_run:
        _show_plan(session, ordered, units, store, asked)
        return
    shop = _shop(session, ordered, owner, store.folder)
    said = partial(typed, profile=profile, hub=session.hub, owner=owner, any_code=any_code)
    if emit:
        missing = _missing(units, store, any_code)
        script = launch(emit, ordered, missing, shop, recipes, work, said)
        write_launch(session, script, out)
        return
    with store.claimed([unit.key for unit in units]) if only else store.alone():
        outcome = _make(session, ordered, units, store, shop, asked)
        told = [] if only else _tell(session, ordered, outcome, store.folder)
    _show_end(session, outcome, told, store.folder)
    _raise_failures(outcome, len(units), said(recipes, work))
    _raise_strays(session, told, check)


def _keys(only: str) -> list[str]:
    if keys := [key.strip() for key in only.split(",") if key.strip()]:
        return keys
    raise UsageError("--only names no unit.", "Write keys of `--dry-run --json`, with commas.")


def _shop(session: Session, ordered: Order, owner: str | None, work: Path) -> Shop:
    """Where units are made; the embedded Hub of recipes is never the user's own."""
    from hubmerge.reproduce.unit import Shop

    hub = session.hub or ordered.hub or os.environ.get("HUBMERGE_HUB")
    if hub == "local":
        os.environ["HUBMERGE_HOME"] = str(work / "home")
    elif owner is None:
        raise UsageError(
            f"The profile {ordered.profile} pushes to a Hub, and it is not said whose.",
            "Write --owner NAME: your name there, or an organisation's.",
        )
    from hubmerge.reproduce.code_digest import code_version

    return Shop(hub, owner or "recipes", work / "scratch", ordered.recipes, code_version())


def _show_plan(
    session: Session, ordered: Order, units: Sequence[Unit], store: Store, asked: Asked
) -> None:
    from hubmerge.reproduce.plan_cost import costs

    records = store.known(units, asked.any_code)
    found = costs(units, records, ordered.pace())
    names = ", ".join(plan.recipe.name for plan in ordered.plans)
    shown = cost_table(found, f"would make for {names}, profile {ordered.profile}")
    session.show(shown, plan_data(ordered, units, records, found))


def _make(
    session: Session,
    ordered: Order,
    units: Sequence[Unit],
    store: Store,
    shop: Shop,
    asked: Asked,
) -> Outcome:
    """Make what is missing; on the way out, however it is, say what is kept."""
    from hubmerge.reproduce import runner

    missing = _missing(units, store, asked.any_code)
    if len(missing) < len(units):
        session.say(f"{len(units) - len(missing)} of {len(units)} units are known already.")
    check_weights(shop, store, len(units) - len(missing) if missing else 0)
    if not missing:
        return runner.Outcome(store.known(units, asked.any_code), (), (), ())
    watching = Watching(session, units, ordered.pace())
    with served(shop), watching:
        engine = open_engine(
            asked.engine, missing, shop, store.folder, asked.workers, asked.address
        )
        with closing(engine):
            try:
                return runner.run(
                    units, engine, store, watching, retries=asked.retries, any_code=asked.any_code
                )
            except KeyboardInterrupt:
                kept = len(store.known(units, asked.any_code))
                session.say(f"{kept} of {len(units)} units are kept in {store.folder}.")
                raise


def _missing(units: Sequence[Unit], store: Store, any_code: bool) -> list[Unit]:
    known = store.known(units, any_code)
    return [unit for unit in units if unit.key not in known]


def _tell(session: Session, ordered: Order, outcome: Outcome, work: Path) -> list[Told]:
    """Tell the recipes that can be told, and say which cannot."""
    from hubmerge.reproduce.result_files import lacking, tell_all

    for plan in ordered.plans:
        if absent := lacking(plan, outcome.records):
            session.say(f"{plan.recipe.name} is not told: {absent} of its units are missing.")
    return tell_all(ordered, outcome.records, work)


def _show_end(session: Session, outcome: Outcome, told: Sequence[Told], work: Path) -> None:
    shown = [claim_table(one.results for one in told)] if told else []
    if outcome.failed:
        shown.append(failure_table(outcome.failed))
    session.show(
        Group(*shown) if shown else f"{len(outcome.made)} units made in {work}",
        end_data(outcome, told),
    )
    for one in told:
        session.say(f"{one.results.recipe}: {one.results.verdict}; {one.path}")
    if session.debug:
        for failure in outcome.failed:
            session.say(failure.trace)


def _raise_failures(outcome: Outcome, units: int, again: str) -> None:
    """Units that have no result fail the command, which says how to make just them."""
    if not outcome.failed:
        return
    keys = ",".join(failure.unit.key for failure in outcome.failed)
    skipped = f", and {len(outcome.skipped)} that need them were skipped"
    raise HubmergeError(
        f"{len(outcome.failed)} of {units} units failed{skipped if outcome.skipped else ''}.",
        f"Just them again: {again} --only {keys}\nAll that is missing: {again}",
    )


def _raise_strays(session: Session, told: Sequence[Told], check: bool) -> None:
    """Numbers outside their band are told of, and fail the command if that was asked for."""
    strays = [f"{one.results.recipe}: {sentence}" for one in told for sentence in one.left or ()]
    if check:
        strays += [
            f"{one.results.recipe}: it has no expected.json to be held to."
            for one in told
            if one.left is None
        ]
        raise_together(
            HubmergeError, strays, "Find out why before changing what expected.json expects."
        )
    for stray in strays:
        session.say(f"Note: {stray}")
