"""hubmerge merge"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import DryRun, Licence, Private, repository, settings_of, spelled
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.merge import Merged, Prepared
    from hubmerge.manifest import Manifest
    from hubmerge.refs import ModelRef

Option = typer.Option


@verb
def merge(
    session: Session,
    experts: Annotated[
        list[str] | None, typer.Argument(help="Experts: owner/name@step64, folders ...")
    ] = None,
    method: Annotated[str | None, Option(help="Name from `hubmerge methods`. [ties]")] = None,
    base: Annotated[
        str | None, Option(help="Base of the experts, if their manifests do not name it.")
    ] = None,
    settings: Annotated[
        list[str] | None, Option("--set", help="Parameter of the method: name=value.")
    ] = None,
    lock: Annotated[
        Path | None, Option(help="Merge what `hubmerge select` chose, by its hubmerge.lock.")
    ] = None,
    policy: Annotated[
        str | None, Option(help="Merge the lock's pick of this policy. [the chosen one]")
    ] = None,
    locked: Annotated[
        bool, Option("--locked", help="Refuse names that mean other commits than the lock pins.")
    ] = False,
    out: Annotated[Path | None, Option(help="Folder of the result.")] = None,
    push: Annotated[
        str | None, Option(help="Also publish it: owner/name or owner/name@tag.")
    ] = None,
    pull_request: Annotated[
        bool, Option("--pull-request", help="Propose it to --push instead of committing to main.")
    ] = False,
    dtype: Annotated[str | None, Option(help="Number format of the result, such as BF16.")] = None,
    replace: Annotated[bool, Option("--replace", help="Replace what lies in --out.")] = False,
    allow_nonfinite: Annotated[
        bool, Option("--allow-nonfinite", help="Merge even NaN and infinity.")
    ] = False,
    licence: Licence = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Merge experts of one base into one model, in a folder and, if asked, on the Hub."""
    if lock is not None:
        _check_locked(experts=experts, method=method, settings=settings, dtype=dtype)
    else:
        _check_named(experts, policy, locked)
    to = repository(push)
    if pull_request:
        _check_pull_request(to, private)
    with session.connected() as hub:
        from hubmerge.flows import merge as flow

        request = flow.MergeRequest(
            experts=tuple(parse_ref(text) for text in experts or ()),
            method=method or "ties",
            settings=settings_of(settings or [], "density=0.2"),
            lock=lock,
            policy=policy,
            locked=locked,
            base=parse_ref(base) if base else None,
            out=out,
            push=to,
            private=private,
            pull_request=pull_request,
            dtype=dtype,
            replace=replace,
            allow_nonfinite=allow_nonfinite,
            licence=spelled(licence),
        )
        with session.progress() as progress:
            prepared = flow.prepare(hub, request, session.home / "merges")
            for note in prepared.notes:
                session.say(note)
            if dry_run:
                session.show(
                    _table(prepared.manifest, f"would merge into {prepared.folder}"),
                    {**_data(prepared), "notes": prepared.notes},
                )
                return
            merged = flow.merge_and_publish(hub, prepared, progress)
        if pull_request and merged.pull_request is None:
            session.say(f"{push} holds just this already: there is nothing to propose.")
        session.show(
            _table(merged.manifest, f"merged into {merged.folder}{_pushed(merged, push)}"),
            {
                **_data(merged),
                "notes": prepared.notes,
                "commit": merged.commit,
                "pull_request": merged.pull_request,
                "digest": merged.manifest.digest,
            },
        )


def _check_locked(**said: object) -> None:
    """A lock says all that decides the merge."""
    flags = {"experts": "experts", "method": "--method", "settings": "--set", "dtype": "--dtype"}
    given = [flags[name] for name, value in said.items() if value]
    if given:
        raise UsageError(
            f"--lock says what is merged and how: {', '.join(given)} cannot be given as well.",
            "Leave them out, or choose anew with `hubmerge select`.",
        )


def _check_named(experts: list[str] | None, policy: str | None, locked: bool) -> None:
    if not experts:
        raise UsageError(
            "There is nothing to merge.", "Name experts, owner/name@step64 ..., or say --lock."
        )
    if policy or locked:
        raise UsageError(f"{'--policy' if policy else '--locked'} belongs to --lock.")


def _check_pull_request(to: ModelRef | None, private: bool) -> None:
    if to is None:
        raise UsageError("--pull-request goes to a repository.", "Name it with --push owner/name.")
    if to.revision:
        raise UsageError(
            "A pull request has no tag.", f"Write --push {to.repo_id}, and tag what was accepted."
        )
    if private:
        raise UsageError("--private makes a new repository, and a pull request needs an old one.")


def _pushed(merged: Merged, push: str | None) -> str:
    """Where it was pushed to."""
    if merged.pull_request:
        return f", proposed at {merged.pull_request}"
    return f", {push} at {merged.commit[:12]}" if merged.commit else ""


def _table(manifest: Manifest, title: str) -> object:
    params = ", ".join(f"{name}={value}" for name, value in sorted(manifest.params.items()))
    rows = [
        (source.label, source.sha[:12], source.task_name or "-", f"{source.weight:g}")
        for source in manifest.experts
    ]
    rows.append((f"base {manifest.base.name}", manifest.base.sha[:12], "", ""))
    said = f"{manifest.method}" + (f" ({params})" if params else "")
    return table(("expert", "commit", "task", "weight>"), rows, title=f"{title}: {said}")


def _data(merge: Prepared | Merged) -> dict[str, object]:
    manifest = merge.manifest
    return {
        "folder": str(merge.folder),
        "recipe": manifest.recipe,
        "method": manifest.method,
        "params": dict(manifest.params),
        "lock": manifest.lock,
        "experts": [{"label": s.label, "sha": s.sha, "weight": s.weight} for s in manifest.experts],
    }
