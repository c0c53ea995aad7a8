"""`hubmerge run --emit`: scripts that run the missing units on a cluster or on HF Jobs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from hubmerge import __version__
from hubmerge.cli.session import Session
from hubmerge.durable import write_atomic
from hubmerge.errors import UsageError
from hubmerge.refs import printable

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import CombinedPlan
    from hubmerge.reproduce.unit import Unit, WorkContext

LaunchKind = Literal["slurm", "hf-jobs"]
# Builds the command of a run from the folders of its recipes and its work folder.
CommandBuilder = Callable[[Sequence[Path], Path], str]
_RECIPES, _WORK = PurePosixPath("/recipes"), PurePosixPath("/work")


def launch_script(
    emit: LaunchKind,
    combined: CombinedPlan,
    missing: Sequence[Unit],
    context: WorkContext,
    recipes: Sequence[Path],
    work: Path,
    command: CommandBuilder,
) -> str:
    """A script that runs the missing units; raises UsageError if it could not work elsewhere."""
    from hubmerge.reproduce import emit_jobs, emit_slurm
    from hubmerge.reproduce.emit import make_batches

    if context.hub == "local":
        raise UsageError(
            "The weights would stay on the embedded Hub of one machine.",
            "Use a profile without `hub: local`, and leave HUBMERGE_HUB and --hub out.",
        )
    if printable(str(work)) != str(work):
        raise UsageError("--work has a control character in it.", "Use another folder.")
    name = ", ".join(plan.recipe.name for plan in combined.plans)
    pace = combined.duration_estimator()
    if emit == "slurm":
        jobs = make_batches(missing, pace, emit_slurm.MAX_JOBS)
        return emit_slurm.render_slurm(jobs, command(recipes, work), name, str(work))
    mounted = [Path(_RECIPES / plan.recipe.name) for plan in combined.plans]
    return emit_jobs.render_hf_jobs(
        make_batches(missing, pace, emit_jobs.MAX_JOBS),
        command(mounted, Path(_WORK)),
        name=name,
        owner=context.owner,
        recipes=str(context.recipes),
        folders=[f"{plan.recipe.name}-{plan.profile}" for plan in combined.plans],
        version=__version__,
    )


def write_launch_script(session: Session, script: str, out: Path | None) -> None:
    """Write a script to a file, or to standard output."""
    if out is None:
        session.print_result(script.rstrip("\n"), {"script": script})
        return
    write_atomic(out, script.encode(), mode=0o755)
    session.print_message(f"Wrote {out}.")


def resume_command(
    recipes: Sequence[Path],
    work: Path,
    *,
    profile: str,
    hub: str | None,
    owner: str | None,
    any_code: bool,
) -> str:
    """The command that continues this run; it names no engine, so any can continue it."""
    options = {"--profile": profile, "--work": work, "--hub": hub, "--owner": owner}
    words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    flags = ["--any-code"] if any_code else []
    return shlex.join(["hubmerge", "run", *map(str, recipes), *words, *flags])
