"""hubmerge merge"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import DryRun, Private, repository
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.merge import Merged, Prepared
    from hubmerge.manifest import Manifest

Option = typer.Option


@verb
def merge(
    session: Session,
    experts: Annotated[list[str], typer.Argument(help="Experts: owner/name@step64, folders ...")],
    method: Annotated[str, Option(help="Name from `hubmerge methods`.")] = "ties",
    base: Annotated[
        str | None, Option(help="Base of the experts, if their manifests do not name it.")
    ] = None,
    settings: Annotated[
        list[str] | None, Option("--set", help="Parameter of the method: name=value.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder of the result.")] = None,
    push: Annotated[
        str | None, Option(help="Also publish it: owner/name or owner/name@tag.")
    ] = None,
    dtype: Annotated[str | None, Option(help="Number format of the result, such as BF16.")] = None,
    replace: Annotated[bool, Option("--replace", help="Replace what lies in --out.")] = False,
    allow_nonfinite: Annotated[
        bool, Option("--allow-nonfinite", help="Merge even NaN and infinity.")
    ] = False,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Merge experts of one base into one model, in a folder and, if asked, on the Hub."""
    with session.connected() as hub:
        from hubmerge.flows import merge as flow

        request = flow.MergeRequest(
            experts=tuple(parse_ref(text) for text in experts),
            method=method,
            settings=_settings(settings or []),
            base=parse_ref(base) if base else None,
            out=out,
            push=repository(push),
            private=private,
            dtype=dtype,
            replace=replace,
            allow_nonfinite=allow_nonfinite,
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
        where = f"{merged.folder}" + (f", {push} at {merged.commit[:12]}" if merged.commit else "")
        session.show(
            _table(merged.manifest, f"merged into {where}"),
            {
                **_data(merged),
                "notes": prepared.notes,
                "commit": merged.commit,
                "digest": merged.manifest.digest,
            },
        )


def _settings(texts: list[str]) -> dict[str, str]:
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--set {text!r} is not name=value.", "Write --set density=0.2.")
        if name.strip() in settings:
            raise UsageError(f"--set {name.strip()} is given twice.", "Give it once.")
        settings[name.strip()] = value.strip()
    return settings


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
        "experts": [{"label": s.label, "sha": s.sha, "weight": s.weight} for s in manifest.experts],
    }
