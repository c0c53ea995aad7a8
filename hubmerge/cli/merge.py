"""hubmerge merge"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.byte_sizes import format_bytes
from hubmerge.cli.merge_options import MergeOptions, check_options, make_request
from hubmerge.cli.options import LockOptions, ResultOptions
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.weights.kept_shares import parse_shares

if TYPE_CHECKING:
    from hubmerge.flows.prepared_merge import MergeResult, PreparedMerge
    from hubmerge.manifest import Manifest
    from hubmerge.merging.estimate import MergeEstimate


@command
def merge(
    session: Session,
    experts: Annotated[
        list[str] | None, typer.Argument(help="Experts: owner/name@step64, folders ...")
    ] = None,
    *,
    options: MergeOptions,
    lock_options: LockOptions,
    result_options: ResultOptions,
) -> None:
    """Merge experts of one base into one model.

    The result is a folder, and with --push also a revision on the Hub.

    Example: hubmerge merge me/cars@step64 me/birds@step32 --out ./merged
    """
    check_options(experts, options, lock_options, result_options)
    with session.open_hub(options.step_pattern) as hub, session.progress() as progress:
        from hubmerge.flows.merge import merge_and_publish, prepare_merge

        request = make_request(experts, options, lock_options, result_options)
        prepared = prepare_merge(hub, request, session.home / "merges", progress)
        for note in prepared.notes:
            session.print_message(note)
        if result_options.dry_run:
            _print_plan(session, prepared)
            return
        merged = merge_and_publish(hub, prepared, progress)
    if options.pull_request and merged.pull_request is None:
        session.print_message(f"{request.push} has these bytes already: nothing is proposed.")
    _print_merge(session, prepared, merged, result_options.push)


def _print_plan(session: Session, prepared: PreparedMerge) -> None:
    from hubmerge.flows.merge import estimate_merge

    data = {**_to_json(prepared), "notes": prepared.notes}
    title = f"would merge into {prepared.folder}"
    if prepared.lora is not None:
        count = len(prepared.lora.modules)
        title += f" as a LoRA of rank {prepared.lora.rank} of at most {count} modules"
    if not prepared.is_hashed:
        data["recipe"] = None  # the bytes of local folders decide it, and they are not read
        if prepared.request.out is None:
            data["folder"], title = None, title.replace(f" into {prepared.folder}", "")
    found = estimate_merge(prepared)
    data["estimate"] = asdict(found) if found else None
    session.print_result(_experts_table(prepared.manifest, title), data)
    if found is not None:
        session.print_message(_describe_estimate(found))


def _describe_estimate(found: MergeEstimate) -> str:
    seconds = "" if found.seconds is None else f", in about {max(found.seconds, 1):.0f} s"
    return (
        f"It reads {format_bytes(found.read_bytes)}, writes {format_bytes(found.write_bytes)} and "
        f"takes about {format_bytes(found.memory_bytes)} of memory{seconds}."
    )


def _print_merge(
    session: Session, prepared: PreparedMerge, merged: MergeResult, push: str | None
) -> None:
    title = f"merged into {merged.folder}{_describe_push(merged, push)}"
    shares = parse_shares(merged.manifest.training.get("lora"))
    if shares is not None:
        from hubmerge.cards.lora import describe_adapter, describe_left_out

        title = f"{title}, {describe_adapter(shares)}"
        for line in describe_left_out(shares):
            session.print_message(line)
    session.print_result(
        _experts_table(merged.manifest, title),
        {
            **_to_json(merged),
            "notes": prepared.notes,
            "commit": merged.commit,
            "pull_request": merged.pull_request,
            "digest": merged.manifest.digest,
            **({"lora": shares.to_json()} if shares else {}),
        },
    )


def _describe_push(merged: MergeResult, push: str | None) -> str:
    """Where the merge was pushed to, as the end of a title."""
    if merged.pull_request:
        return f", proposed at {merged.pull_request}"
    return f", {push} at {merged.commit[:12]}" if merged.commit else ""


def _experts_table(manifest: Manifest, title: str) -> object:
    rows = [
        (source.label, source.sha[:12], source.task_name or "-", f"{source.weight:g}")
        for source in manifest.experts
    ]
    rows.append((f"base {manifest.base.name}", manifest.base.sha[:12], "", ""))
    params = ", ".join(f"{name}={value}" for name, value in sorted(manifest.params.items()))
    method = f"{manifest.method} ({params})" if params else str(manifest.method)
    return make_table(("expert", "commit", "task", "weight>"), rows, title=f"{title}: {method}")


def _to_json(merge: PreparedMerge | MergeResult) -> dict[str, object]:
    manifest = merge.manifest
    return {
        "folder": str(merge.folder),
        "recipe": manifest.recipe,
        "method": manifest.method,
        "params": dict(manifest.params),
        "lock": manifest.lock,
        "experts": [{"label": s.label, "sha": s.sha, "weight": s.weight} for s in manifest.experts],
    }
