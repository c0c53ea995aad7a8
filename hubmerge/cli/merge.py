"""hubmerge merge"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, parse_ref

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
    dry_run: Annotated[bool, Option("--dry-run", help="Check everything, write nothing.")] = False,
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
            push=_hub_ref(push) if push else None,
            dtype=dtype,
            replace=replace,
            allow_nonfinite=allow_nonfinite,
        )
        with session.progress() as progress:
            prepared = flow.prepare(hub, request, session.home / "merges")
            if dry_run:
                session.show(_table(prepared.manifest, f"would merge into {prepared.out}"), {})
                return
            merged = flow.merge_and_publish(hub, prepared, progress)
        where = f"{merged.folder}" + (f", {push} at {merged.commit[:12]}" if merged.commit else "")
        session.show(_table(merged.manifest, f"merged into {where}"), _data(merged))


def _settings(texts: list[str]) -> dict[str, str]:
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--set {text!r} is not name=value.", "Write --set density=0.2.")
        settings[name.strip()] = value.strip()
    return settings


def _hub_ref(text: str) -> ModelRef:
    ref = parse_ref(text)
    if ref.is_local or ref.subfolder:
        raise UsageError(f"--push {text!r} is not a repository.", "Write owner/name.")
    return ref


def _table(manifest: Any, title: str) -> object:
    params = ", ".join(f"{name}={value}" for name, value in sorted(manifest.params.items()))
    rows = [
        (source.label, source.sha[:12], source.task or "-", f"{source.weight:g}")
        for source in manifest.experts
    ]
    rows.append((f"base {manifest.base.name}", manifest.base.sha[:12], "", ""))
    said = f"{manifest.method}" + (f" ({params})" if params else "")
    return table(("expert", "commit", "task", "weight>"), rows, title=f"{title}: {said}")


def _data(merged: Any) -> dict[str, object]:
    return {
        "folder": str(merged.folder),
        "commit": merged.commit,
        "recipe": merged.manifest.recipe,
        "digest": merged.manifest.digest,
        "method": merged.manifest.method,
        "params": dict(merged.manifest.params),
        "experts": [
            {"label": s.label, "sha": s.sha, "weight": s.weight} for s in merged.manifest.experts
        ],
    }
