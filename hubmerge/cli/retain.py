"""hubmerge retain"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from hubmerge.cli.options import Private
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import line, table
from hubmerge.durable import write_whole
from hubmerge.errors import HubmergeError, UsageError
from hubmerge.refs import check_repo_id
from hubmerge.retention.plan import USD_PER_GB_MONTH, Plan, parse_plan

if TYPE_CHECKING:
    from hubmerge.flows.deltas import Stored
    from hubmerge.flows.retain import Checked
    from hubmerge.retention.evidence import Regret

Option = typer.Option


@verb
def retain(
    session: Session,
    repos: Annotated[
        list[str] | None, typer.Argument(help="Repositories: owner/name ...", show_default=False)
    ] = None,
    budget: Annotated[
        str | None,
        Option(help="Most to keep: 2GB, 30%, 5usd (a month). [only what has a reason to stay]"),
    ] = None,
    target: Annotated[
        list[str] | None, Option(help="Merge method to keep the best for. [all that were tried]")
    ] = None,
    lock: Annotated[
        list[Path] | None, Option(help="Lock whose experts stay, besides those selected here.")
    ] = None,
    price: Annotated[
        float, Option(min=1e-6, help="US dollars per GB and month, for 5usd and for the table.")
    ] = USD_PER_GB_MONTH,
    plan: Annotated[Path | None, Option(help="Write the plan here; nothing is deleted.")] = None,
    apply: Annotated[
        Path | None, Option(help="Check a plan again, and delete the names it drops.")
    ] = None,
    purge: Annotated[
        bool, Option("--purge", help="With --apply: delete their large files for good.")
    ] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="With --apply: do not ask.")] = False,
    as_delta: Annotated[
        bool, Option("--as-delta", help="Publish steps as bfloat16 deltas to their base, in --to.")
    ] = False,
    to: Annotated[str | None, Option(help="With --as-delta: owner/name of the deltas.")] = None,
    steps: Annotated[str | None, Option(help="With --as-delta: steps, such as 4,16. [all]")] = None,
    private: Private = False,
) -> None:
    """Keep the step revisions that matter under a budget: plan, look, then apply."""
    modes = [bool(apply), as_delta]
    if all(modes) or bool(repos) == bool(apply):
        raise UsageError(
            "Say what to retain: repositories for a plan, or --apply with one.",
            "Write hubmerge retain owner/name --budget 2GB --plan plan.json, then "
            "hubmerge retain --apply plan.json.",
        )
    if (purge or yes) and not apply:
        raise UsageError("--purge and --yes go with --apply.", "A plan deletes nothing.")
    if (to or steps or private) and not as_delta:
        raise UsageError("--to, --steps and --private go with --as-delta.", "Add it.")
    named = [check_repo_id(repo) for repo in repos or ()]
    if apply:
        _apply(session, apply, tuple(lock or ()), purge, yes)
    elif as_delta:
        _as_delta(session, named, to, steps, private)
    else:
        _plan(session, named, budget, tuple(target or ()), tuple(lock or ()), price, plan)


def _plan(
    session: Session,
    repos: list[str],
    budget: str | None,
    targets: tuple[str, ...],
    locks: tuple[Path, ...],
    price: float,
    out: Path | None,
) -> None:
    with session.connected() as hub:
        from hubmerge.flows.retain import RetainRequest, draft

        with session.progress() as progress:
            request = RetainRequest(tuple(repos), budget, targets, locks, price)
            drafted = draft(hub, request, session.home, progress)
    plan = drafted.plan
    session.show(_table(plan), json.loads(plan.to_bytes()))
    if drafted.excess:
        raise HubmergeError(
            f"What has a reason to stay takes {_size(drafted.excess)} more than --budget {budget}; "
            "no plan was written.",
            "Raise the budget, leave it out to keep just that, or take away a lock that is done.",
        )
    if out is not None:
        write_whole(out, plan.to_bytes(), mode=0o644)
        session.say(f"Nothing is deleted yet: look at it, then `hubmerge retain --apply {out}`.")


def _apply(session: Session, path: Path, locks: tuple[Path, ...], purge: bool, yes: bool) -> None:
    if not path.is_file():
        raise UsageError(f"There is no plan {path}.", "Make one with `hubmerge retain --plan`.")
    plan = parse_plan(path.read_bytes(), str(path))
    with session.connected() as hub:
        from hubmerge.flows.retain import carry_out, check

        checked = check(hub, plan, session.home, locks)
        goes = bool(checked.there) or (purge and checked.stranded_bytes > 0)
        _agree(session, _what_goes(checked, purge), asking=goes and not yes)
        with session.progress() as progress:
            done = carry_out(hub, checked, purge, progress)
    lines = [f"deleted {label}" for label in done.deleted]
    freed = f"{_size(done.freed)} of large files are gone for good" if purge else "no bytes freed"
    session.show(
        "\n".join([*lines, f"names deleted: {len(done.deleted)}; {freed}."]),
        {"deleted": list(done.deleted), "bytes_freed": done.freed},
    )


def _agree(session: Session, what_goes: str, asking: bool) -> None:
    """Nothing is deleted that nobody agreed to, having seen it."""
    if not asking:
        session.say(what_goes)
        return
    if session.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("Nobody can be asked here whether to delete this.", "Say --yes.")
    typer.echo(what_goes, err=True)  # also with --quiet
    if not typer.confirm("Delete this?", err=True):
        raise HubmergeError("Nothing was deleted.")


def _what_goes(checked: Checked, purge: bool) -> str:
    """What applying the plan does, and what it does not."""
    names = [f"  {one.kind} {one.label} ({one.sha[:12]})" for one in checked.there]
    said = ["These names go:", *names] if names else ["Every name that the plan drops is gone."]
    alone = _size(checked.stranded_bytes)
    if purge:
        said.append(
            f"{alone} of large files that nothing else lists go for good. The commits of those "
            "steps stay, and can no longer be loaded."
        )
    else:
        said.append(
            f"That alone frees nothing: {alone} of large files stay stored, and each step can "
            "still be had by its commit. --purge deletes them for good."
        )
    return "\n".join(said)


def _as_delta(
    session: Session, repos: list[str], to: str | None, steps: str | None, private: bool
) -> None:
    if to is None or len(repos) != 1:
        raise UsageError(
            "--as-delta takes one repository and --to another.",
            "Write hubmerge retain owner/name --as-delta --to owner/name-deltas.",
        )
    wanted = _steps(steps)
    with session.connected() as hub:
        from hubmerge.flows.deltas import store_as_deltas

        with session.progress() as progress:
            stored = store_as_deltas(
                hub, repos[0], check_repo_id(to), wanted, session.home, progress, private
            )
    session.show(_deltas(stored), [dataclasses.asdict(one) for one in stored])


def _steps(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--steps {text!r} is no list of steps.", "Write --steps 4,16.")
    return tuple(int(part) for part in parts)


def _table(plan: Plan) -> Group:
    rows = [
        (
            "keep" if one.keep else "drop",
            *(one.repo, one.name, one.sha[:12], _size(one.size), ", ".join(one.reasons)),
        )
        for one in plan.verdicts
    ]
    columns = ("", "repository", "revision", "commit", "size>", "why")
    totals = plan.totals
    said = (
        f"kept: {len(plan.kept)}, {_size(totals['bytes_kept'])}; dropped: {len(plan.dropped)}, "
        f"which alone hold {_size(totals['bytes_dropped'])}"
    )
    cost = (
        f"${totals['usd_per_month_kept']:.2f} a month for what stays, "
        f"${totals['usd_per_month_dropped']:.2f} less than now, assuming "
        f"${plan.usd_per_gb_month:g} per GB and month (--price)"
    )
    told = [_regret(one) for one in plan.regrets] or ["regret: not measured, no merge was tried"]
    return Group(table(columns, rows), *map(line, [said, cost, *told]))


def _regret(one: Regret) -> str:
    if one.best is None:
        return f"regret for {one.target}: not measured, no merge was tried"
    told = f"regret for {one.target} over {len(one.tasks)} tasks, {one.trials} merges tried"
    if one.value is None or one.band is None:
        return f"{told}: nothing that was measured stays (best {100 * one.best:.1f} %)"
    within = "within the noise" if one.is_noise else "beyond the noise"
    if one.value == 0:
        within = "the best stays"
    return (
        f"{told}: {100 * one.value:.1f} points of {100 * one.best:.1f} % ± {100 * one.band:.1f}, "
        f"{within}"
    )


def _deltas(stored: list[Stored]) -> object:
    rows = [
        (
            *(one.label, one.commit[:12], _size(one.before), _size(one.after)),
            "exact" if one.rounding.exact else f"{one.rounding.absolute:.2g}",
            f"{100 * one.rounding.relative:.2f}",
        )
        for one in stored
    ]
    columns = ("revision", "commit", "weights>", "as delta>", "largest error>", "% of change>")
    return table(columns, rows)


def _size(size: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"
