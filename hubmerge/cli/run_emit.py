"""`hubmerge run --emit`: the launch of what is missing, for those who have a cluster or Jobs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from hubmerge import __version__
from hubmerge.cli.session import Session
from hubmerge.durable import write_whole
from hubmerge.errors import UsageError
from hubmerge.refs import printable

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import Order
    from hubmerge.reproduce.unit import Shop, Unit

Emitted = Literal["slurm", "hf-jobs"]
# The command of a run, by where its recipes lie and its folder is.
Command = Callable[[Sequence[Path], Path], str]
_RECIPES, _WORK = PurePosixPath("/recipes"), PurePosixPath("/work")


def launch(
    emit: Emitted,
    ordered: Order,
    missing: Sequence[Unit],
    shop: Shop,
    recipes: Sequence[Path],
    work: Path,
    command: Command,
) -> str:
    """A script that launches the units that are missing; raises UsageError where it cannot."""
    from hubmerge.reproduce import emit_jobs, emit_slurm
    from hubmerge.reproduce.emit import batches

    if shop.hub == "local":
        raise UsageError(
            "The weights would be kept on the embedded Hub of one machine.",
            "Emit a profile that says no `hub: local`, with HUBMERGE_HUB and --hub left out.",
        )
    if printable(str(work)) != str(work):
        raise UsageError("--work has a control character in it.", "Name another folder.")
    name = ", ".join(plan.recipe.name for plan in ordered.plans)
    pace = ordered.pace()
    if emit == "slurm":
        made = batches(missing, pace, emit_slurm.MOST)
        return emit_slurm.slurm(made, command(recipes, work), name, str(work))
    inside = [Path(_RECIPES / plan.recipe.name) for plan in ordered.plans]
    return emit_jobs.hf_jobs(
        batches(missing, pace, emit_jobs.MOST),
        command(inside, Path(_WORK)),
        name=name,
        owner=shop.owner,
        recipes=str(shop.recipes),
        folders=[f"{plan.recipe.name}-{plan.profile}" for plan in ordered.plans],
        version=__version__,
    )


def write_launch(session: Session, script: str, out: Path | None) -> None:
    """A script goes to a file, or to standard output as it is."""
    if out is None:
        session.show(script.rstrip("\n"), {"script": script})
        return
    write_whole(out, script.encode(), mode=0o755)
    session.say(f"Written: {out}")


def typed(
    recipes: Sequence[Path],
    work: Path,
    *,
    profile: str,
    hub: str | None,
    owner: str | None,
    any_code: bool,
) -> str:
    """The command that goes on with this run, whatever engine it was begun with."""
    said = {"--profile": profile, "--work": work, "--hub": hub, "--owner": owner}
    words = [str(word) for pair in said.items() if pair[1] is not None for word in pair]
    code = ["--any-code"] if any_code else []
    return shlex.join(["hubmerge", "run", *map(str, recipes), *words, *code])
