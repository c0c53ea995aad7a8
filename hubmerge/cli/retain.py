"""hubmerge retain"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from hubmerge.byte_sizes import format_bytes
from hubmerge.cli.options import Option, Private
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table, text_line
from hubmerge.durable import write_atomic
from hubmerge.errors import HubmergeError, UsageError
from hubmerge.refs import check_repo_id
from hubmerge.retention.plan import USD_PER_GB_MONTH, RetentionPlan, parse_plan

if TYPE_CHECKING:
    from hubmerge.flows.deltas import StoredDelta
    from hubmerge.flows.retain import CheckedPlan
    from hubmerge.retention.evidence import Regret


@dataclass(frozen=True)
class PlanOptions:
    """What a plan keeps, and where it is written to."""

    budget: Annotated[
        str | None,
        Option(help="Most to keep: 2GB, 30%, 5usd (a month). [what is needed, nothing else]"),
    ] = None
    target: Annotated[
        list[str] | None, Option(help="Merge method to keep the best for. [all that were tried]")
    ] = None
    lock: Annotated[list[Path] | None, Option(help="Also keep the experts of this lock.")] = None
    price: Annotated[
        float, Option(min=1e-6, help="US dollars per GB and month, for 5usd and for the table.")
    ] = USD_PER_GB_MONTH
    plan: Annotated[
        Path | None, Option(help="Write the plan to this file; nothing is deleted.")
    ] = None


@dataclass(frozen=True)
class ApplyOptions:
    """Which plan is applied, and how."""

    apply: Annotated[
        Path | None, Option(help="Check a plan again, and delete the tags and branches it drops.")
    ] = None
    purge: Annotated[
        bool, Option("--purge", help="With --apply: delete their large files permanently.")
    ] = False
    yes: Annotated[bool, Option("--yes", "-y", help="With --apply: do not ask.")] = False


@dataclass(frozen=True)
class DeltaOptions:
    """Which steps are stored as deltas, and where."""

    as_delta: Annotated[
        bool, Option("--as-delta", help="Publish steps as bfloat16 deltas to their base, in --to.")
    ] = False
    to: Annotated[str | None, Option(help="With --as-delta: owner/name of the deltas.")] = None
    steps: Annotated[str | None, Option(help="With --as-delta: steps, such as 4,16. [all]")] = None
    private: Private = False


@command
def retain(
    session: Session,
    repos: Annotated[
        list[str] | None, typer.Argument(help="Repositories: owner/name ...", show_default=False)
    ] = None,
    *,
    plan_options: PlanOptions,
    apply_options: ApplyOptions,
    delta_options: DeltaOptions,
) -> None:
    """Keep the step revisions that matter, and delete the others.

    First write a plan and read it, then apply it.

    Example: hubmerge retain me/mnist --budget 2GB --plan plan.json
    """
    _check_mode(repos, apply_options, delta_options)
    repo_ids = [check_repo_id(repo) for repo in repos or ()]
    if apply_options.apply:
        _apply_plan(session, apply_options.apply, apply_options, tuple(plan_options.lock or ()))
    elif delta_options.as_delta:
        _store_as_deltas(session, repo_ids, delta_options)
    else:
        _make_plan(session, repo_ids, plan_options)


def _check_mode(
    repos: list[str] | None, apply_options: ApplyOptions, delta_options: DeltaOptions
) -> None:
    """Raises UsageError unless the options are those of one task: a plan, applying, or deltas."""
    apply, as_delta = apply_options.apply, delta_options.as_delta
    if (apply and as_delta) or bool(repos) == bool(apply):
        raise UsageError(
            "Name repositories to make a plan, or --apply an existing plan.",
            "Write hubmerge retain owner/name --budget 2GB --plan plan.json, then "
            "hubmerge retain --apply plan.json.",
        )
    if (apply_options.purge or apply_options.yes) and not apply:
        raise UsageError("--purge and --yes need --apply.", "Making a plan deletes nothing.")
    if (delta_options.to or delta_options.steps or delta_options.private) and not as_delta:
        raise UsageError("--to, --steps and --private need --as-delta.", "Add --as-delta.")


def _make_plan(session: Session, repo_ids: list[str], options: PlanOptions) -> None:
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.flows.retain import RetainRequest, draft_plan

        targets, locks = tuple(options.target or ()), tuple(options.lock or ())
        request = RetainRequest(tuple(repo_ids), options.budget, targets, locks, options.price)
        draft = draft_plan(hub, request, session.home, progress)
    session.print_result(_plan_table(draft.plan), json.loads(draft.plan.to_bytes()))
    session.print_message(_describe_unseen(draft.unseen))
    if draft.excess:
        raise HubmergeError(
            f"The revisions that must stay take {format_bytes(draft.excess)} more than --budget "
            f"{options.budget}; no plan was written.",
            "Raise the budget, leave it out to keep only these revisions, or remove an old lock.",
        )
    if options.plan is not None:
        write_atomic(options.plan, draft.plan.to_bytes(), mode=0o644)
        session.print_message(
            "Nothing is deleted yet. Read the plan, then run "
            f"`hubmerge retain --apply {options.plan}`."
        )


def _apply_plan(
    session: Session, path: Path, options: ApplyOptions, locks: tuple[Path, ...]
) -> None:
    if not path.is_file():
        raise UsageError(f"There is no plan {path}.", "Make one with `hubmerge retain --plan`.")
    plan, purge = parse_plan(path.read_bytes(), str(path)), options.purge
    with session.open_hub() as hub:
        from hubmerge.flows.retain import apply_plan, check_against_hub

        with session.progress() as progress:
            checked = check_against_hub(hub, plan, session.home, locks, progress)
        deletes = bool(checked.deletable) or (purge and checked.unreferenced_bytes > 0)
        _confirm(session, _describe_deletions(checked, purge), ask=deletes and not options.yes)
        with session.progress() as progress:
            result = apply_plan(hub, checked, purge, progress)
    freed = f"{format_bytes(result.freed)} of large files deleted" if purge else "no bytes freed"
    lines = [f"deleted {label}" for label in result.deleted]
    lines.append(f"names deleted: {len(result.deleted)}; {freed}.")
    # Part of the result: with --yes and --quiet nothing was printed before.
    lines += [f"not seen: {sentence}" for sentence in checked.published.unseen]
    session.print_result(
        "\n".join(lines),
        {
            "deleted": list(result.deleted),
            "bytes_freed": result.freed,
            "unseen": list(checked.published.unseen),
        },
    )


def _confirm(session: Session, description: str, ask: bool) -> None:
    """Print what will be deleted; raises HubmergeError if the user does not agree."""
    if not ask:
        session.print_message(description)
        return
    if session.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("Deleting needs a confirmation, and there is no terminal.", "Add --yes.")
    typer.echo(description, err=True)  # also with --quiet
    if not typer.confirm("Delete this?", err=True):
        raise HubmergeError("Nothing was deleted.")


def _describe_deletions(checked: CheckedPlan, purge: bool) -> str:
    """What applying the plan deletes, and what it keeps."""
    lines = ["The plan's names are already deleted."]
    if checked.deletable:
        lines = ["These names will be deleted:"]
        lines += [f"  {item.kind} {item.label} ({item.sha[:12]})" for item in checked.deletable]
    size = format_bytes(checked.unreferenced_bytes)
    if purge:
        lines.append(
            f"{size} of large files that no other revision uses will be deleted permanently. The "
            "commits of these steps stay, and can no longer be loaded."
        )
    else:
        lines.append(
            f"This alone frees nothing: {size} of large files stay stored, and each step can still "
            "be loaded by its commit. --purge deletes the files permanently."
        )
    lines.append(_describe_unseen(checked.published.unseen))
    return "\n".join(lines)


def _describe_unseen(unseen: tuple[str, ...]) -> str:
    """What could need a step and was not seen."""
    from hubmerge.flows.published_uses import BLIND_SPOT

    if not unseen:
        return BLIND_SPOT
    return "\n".join([BLIND_SPOT, "Not seen:", *(f"  {sentence}" for sentence in unseen)])


def _store_as_deltas(session: Session, repo_ids: list[str], options: DeltaOptions) -> None:
    if options.to is None or len(repo_ids) != 1:
        raise UsageError(
            "--as-delta needs one repository, and --to another.",
            "Write hubmerge retain owner/name --as-delta --to owner/name-deltas.",
        )
    steps, target = _parse_steps(options.steps), check_repo_id(options.to)
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.flows.deltas import store_as_deltas

        stored = store_as_deltas(
            hub, repo_ids[0], target, steps, session.home, progress, options.private
        )
    session.print_result(_deltas_table(stored), [dataclasses.asdict(delta) for delta in stored])


def _parse_steps(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--steps {text!r} is not a list of steps.", "Write --steps 4,16.")
    return tuple(int(part) for part in parts)


def _plan_table(plan: RetentionPlan) -> Group:
    rows = [
        (
            "keep" if verdict.keep else "drop", verdict.repo, verdict.name, verdict.sha[:12],
            format_bytes(verdict.size), ", ".join(verdict.reasons),
        )
        for verdict in plan.verdicts
    ]  # fmt: skip
    columns = ("", "repository", "revision", "commit", "size>", "why")
    totals = plan.totals
    sizes = (
        f"kept: {len(plan.kept)}, {format_bytes(totals['bytes_kept'])}; dropped: "
        f"{len(plan.dropped)}, {format_bytes(totals['bytes_dropped'])} that no kept revision uses"
    )
    cost = (
        f"${totals['usd_per_month_kept']:.2f} a month for what stays, "
        f"${totals['usd_per_month_dropped']:.2f} less than now, assuming "
        f"${plan.usd_per_gb_month:g} per GB and month (--price)"
    )
    regrets = [_describe_regret(regret) for regret in plan.regrets]
    lines = [sizes, cost, *(regrets or ["regret: not measured, no merge was tried"])]
    return Group(make_table(columns, rows), *map(text_line, lines))


def _describe_regret(regret: Regret) -> str:
    if regret.best is None:
        return f"regret for {regret.target}: not measured, no merge was tried"
    tried = f"regret for {regret.target} over {len(regret.tasks)} tasks, {regret.trials} merges"
    best = f"{100 * regret.best:.1f} %"
    if regret.value is None or regret.band is None:
        return f"{tried}: no measured merge stays (best {best})"
    within = "within the noise" if regret.is_noise else "beyond the noise"
    if regret.value == 0:
        within = "the best stays"
    return f"{tried}: {100 * regret.value:.1f} points of {best} ± {100 * regret.band:.1f}, {within}"


def _deltas_table(stored: list[StoredDelta]) -> object:
    rows = [
        (
            delta.label, delta.commit[:12], format_bytes(delta.before), format_bytes(delta.after),
            "exact" if delta.rounding.exact else f"{delta.rounding.absolute:.2g}",
            f"{100 * delta.rounding.relative:.2f}",
        )
        for delta in stored
    ]  # fmt: skip
    columns = ("revision", "commit", "weights>", "as delta>", "largest error>", "% of change>")
    return make_table(columns, rows)
