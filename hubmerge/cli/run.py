"""hubmerge run"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from hubmerge.cli.options import DryRun, Option, split_names
from hubmerge.cli.run_emit import LaunchKind, launch_script, resume_command, write_launch_script
from hubmerge.cli.run_engine import EngineName, check_weights, open_engine, serve_hub
from hubmerge.cli.run_progress import RunProgress
from hubmerge.cli.run_tables import (
    claim_table,
    cost_table,
    failure_table,
    outcome_to_json,
    plan_to_json,
)
from hubmerge.cli.session import Session, command
from hubmerge.errors import HubmergeError, UsageError, raise_together
from hubmerge.reports.verdicts import WORDS

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import CombinedPlan
    from hubmerge.reproduce.result_files import RecipeResults
    from hubmerge.reproduce.runner import RunOutcome
    from hubmerge.reproduce.store import ResultStore
    from hubmerge.reproduce.unit import Unit, WorkContext

_DEFAULT_WORK = Path("build/recipes")


@dataclass(frozen=True)
class RunOptions:
    """Which units are run, where, and what happens to the results."""

    profile: Annotated[
        str,
        Option(help="mini: offline, on CPUs; paper: as published; smoke: a test in seconds."),
    ] = "mini"
    engine: Annotated[
        EngineName, Option(help="Processes on this machine, or a Ray cluster (hubmerge[ray]).")
    ] = "local"
    ray_address: Annotated[
        str | None,
        Option(help="Ray cluster, or auto. [RAY_ADDRESS, else a new one here]"),
    ] = None
    work: Annotated[Path, Option(help="Folder of all results and logs.")] = _DEFAULT_WORK
    workers: Annotated[
        int | None, Option(min=1, help="Most units at once. [as many as fit on the cores]")
    ] = None
    only: Annotated[
        str | None, Option(help="Run only the units KEY,KEY ... The units they need must exist.")
    ] = None
    retries: Annotated[
        int, Option(min=0, help="Retries of units after a transient failure or a dead worker.")
    ] = 2
    any_code: Annotated[
        bool, Option("--any-code", help="Use results that another version of the code measured.")
    ] = False
    owner: Annotated[
        str | None, Option(help="Owner of the repositories to push to. [recipes, embedded Hub]")
    ] = None
    check: Annotated[
        bool, Option("--check", help="Fail when a number leaves its band in expected.json.")
    ] = False
    emit: Annotated[
        LaunchKind | None,
        Option(help="Run nothing; write a script that runs it on a cluster or HF Jobs."),
    ] = None
    out: Annotated[Path | None, Option(help="File for --emit. [standard output]")] = None


@command
def run(
    session: Session,
    recipes: Annotated[
        list[Path], typer.Argument(help="Folders of recipes: recipes/NAME; they share units.")
    ],
    *,
    options: RunOptions,
    dry_run: DryRun = False,
) -> None:
    """Reproduce figures and tables of the paper from recipes.

    Units that are missing are run, then the results are written. Every finished unit is kept, so
    the same command continues after an interruption.

    Example: hubmerge run recipes/fft-vision --profile mini --dry-run
    """
    from hubmerge.reproduce.code_digest import code_version
    from hubmerge.reproduce.combined_plan import combine_plans
    from hubmerge.reproduce.store import ResultStore

    if options.out and not options.emit:
        raise UsageError("--out is for --emit.", "Add --emit slurm or --emit hf-jobs.")
    combined = combine_plans(list(dict.fromkeys(recipes)), options.profile)
    units = (
        combined.select_units(_parse_unit_keys(options.only)) if options.only else combined.units
    )
    store = ResultStore(options.work.resolve(), code_version())
    if dry_run:
        _print_plan(session, combined, units, store, options)
    elif options.emit:
        _emit(session, combined, units, store, options, recipes)
    else:
        _run_and_report(session, combined, units, store, options, recipes)


def _parse_unit_keys(only: str) -> list[str]:
    if keys := split_names(only):
        return keys
    raise UsageError("--only has no unit.", "Write keys of `--dry-run --json`, with commas.")


def _print_plan(
    session: Session,
    combined: CombinedPlan,
    units: Sequence[Unit],
    store: ResultStore,
    options: RunOptions,
) -> None:
    from hubmerge.reproduce.plan_cost import plan_costs

    records = store.records(units, options.any_code)
    unit_costs = plan_costs(units, records, combined.duration_estimator())
    names = ", ".join(plan.recipe.name for plan in combined.plans)
    costs_shown = cost_table(unit_costs, f"would run for {names}, profile {combined.profile}")
    session.print_result(costs_shown, plan_to_json(combined, units, records, unit_costs))


def _emit(
    session: Session,
    combined: CombinedPlan,
    units: Sequence[Unit],
    store: ResultStore,
    options: RunOptions,
    recipes: Sequence[Path],
) -> None:
    """Write a script that runs the missing units elsewhere."""
    assert options.emit is not None
    context = _work_context(session, combined, options.owner, store.folder)
    missing = _missing_units(units, store, options.any_code)
    build = partial(_resume_command, session, options)
    script = launch_script(options.emit, combined, missing, context, recipes, options.work, build)
    write_launch_script(session, script, options.out)


def _run_and_report(
    session: Session,
    combined: CombinedPlan,
    units: Sequence[Unit],
    store: ResultStore,
    options: RunOptions,
    recipes: Sequence[Path],
) -> None:
    """Run the missing units and write the results; raises HubmergeError if units failed."""
    context = _work_context(session, combined, options.owner, store.folder)
    lock = store.lock_units([unit.key for unit in units]) if options.only else store.lock_all()
    with lock:
        outcome = _run_missing(session, combined, units, store, context, options)
        written = [] if options.only else _write_results(session, combined, outcome, store.folder)
    _print_outcome(session, outcome, written, store.folder)
    _raise_failures(outcome, len(units), _resume_command(session, options, recipes, options.work))
    _report_out_of_band(session, written, options.check)


def _resume_command(
    session: Session, options: RunOptions, recipes: Sequence[Path], work: Path
) -> str:
    return resume_command(
        recipes,
        work,
        profile=options.profile,
        hub=session.hub,
        owner=options.owner,
        any_code=options.any_code,
    )


def _work_context(
    session: Session, combined: CombinedPlan, owner: str | None, work: Path
) -> WorkContext:
    """Where units run. The embedded Hub of recipes has a home of its own below `work`."""
    from hubmerge.reproduce.code_digest import code_version
    from hubmerge.reproduce.unit import WorkContext

    hub = session.hub or combined.hub or os.environ.get("HUBMERGE_HUB")
    if hub == "local":
        os.environ["HUBMERGE_HOME"] = str(work / "home")
    elif owner is None:
        raise UsageError(
            f"The profile {combined.profile} pushes to a Hub, and no owner is given.",
            "Write --owner NAME: your name there, or an organisation's.",
        )
    return WorkContext(hub, owner or "recipes", work / "scratch", combined.recipes, code_version())


def _run_missing(
    session: Session,
    combined: CombinedPlan,
    units: Sequence[Unit],
    store: ResultStore,
    context: WorkContext,
    options: RunOptions,
) -> RunOutcome:
    """Run the units that are missing; if interrupted, print how many are kept."""
    from hubmerge.reproduce import runner

    missing = _missing_units(units, store, options.any_code)
    known = len(units) - len(missing)
    if known:
        session.print_message(f"{known} of {len(units)} units are known already.")
    if not missing:
        return runner.RunOutcome(store.records(units, options.any_code), (), (), ())
    check_weights(context, store, known)
    progress = RunProgress(session, units, combined.duration_estimator())
    with serve_hub(context), progress:
        engine = open_engine(
            options.engine, missing, context, store.folder, options.workers, options.ray_address
        )
        with closing(engine):
            try:
                return runner.run(
                    units,
                    engine,
                    store,
                    progress,
                    retries=options.retries,
                    any_code=options.any_code,
                )
            except KeyboardInterrupt:
                kept = len(store.records(units, options.any_code))
                session.print_message(f"{kept} of {len(units)} units are kept in {store.folder}.")
                raise


def _missing_units(units: Sequence[Unit], store: ResultStore, any_code: bool) -> list[Unit]:
    known = store.records(units, any_code)
    return [unit for unit in units if unit.key not in known]


def _write_results(
    session: Session, combined: CombinedPlan, outcome: RunOutcome, work: Path
) -> list[RecipeResults]:
    """Write the results of each recipe whose units are complete, and name the others."""
    from hubmerge.reproduce.result_files import count_missing, write_all_results

    for plan in combined.plans:
        if missing := count_missing(plan, outcome.records):
            session.print_message(
                f"{plan.recipe.name} has no results yet: {missing} of its units are missing."
            )
    return write_all_results(combined, outcome.records, work)


def _print_outcome(
    session: Session, outcome: RunOutcome, written: Sequence[RecipeResults], work: Path
) -> None:
    tables = [claim_table(item.results for item in written)] if written else []
    if outcome.failed:
        tables.append(failure_table(outcome.failed))
    session.print_result(
        Group(*tables) if tables else f"{len(outcome.completed)} units made in {work}",
        outcome_to_json(outcome, written),
    )
    for item in written:
        session.print_message(f"{item.results.recipe}: {WORDS[item.results.verdict]}; {item.path}")
    if session.debug:
        for failure in outcome.failed:
            session.print_message(failure.trace)


def _raise_failures(outcome: RunOutcome, units: int, resume: str) -> None:
    """Raises HubmergeError if units failed, with the command that runs only them."""
    if not outcome.failed:
        return
    keys = ",".join(failure.unit.key for failure in outcome.failed)
    skipped = f", and {len(outcome.skipped)} that need them were skipped"
    raise HubmergeError(
        f"{len(outcome.failed)} of {units} units failed{skipped if outcome.skipped else ''}.",
        f"Run only these again: {resume} --only {keys}\nRun all that is missing: {resume}",
    )


def _report_out_of_band(session: Session, written: Sequence[RecipeResults], check: bool) -> None:
    """Print the numbers that left their band in expected.json; with `check` raise them."""
    problems = [
        f"{item.results.recipe}: {sentence}"
        for item in written
        for sentence in item.out_of_band or ()
    ]
    if check:
        problems += [
            f"{item.results.recipe}: there is no expected.json to compare with."
            for item in written
            if item.out_of_band is None
        ]
        raise_together(HubmergeError, problems, "Find out why before you change expected.json.")
    for problem in problems:
        session.print_message(f"Note: {problem}")
