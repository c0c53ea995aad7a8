"""Write a prepared merge into its folder, and push or propose the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hubmerge.flows.prepared_merge import CONFIG_FILE, MergeRequest, MergeResult, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.pull_request import check_can_open_pull_request, open_pull_request
from hubmerge.manifest import Manifest
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.lora_writer import check_lora_out, merge_to_lora
from hubmerge.opening.expert_heads import write_heads
from hubmerge.opening.lora_outputs import with_shares
from hubmerge.opening.publication import check_repository_kind, finalize_folder, folder_publication
from hubmerge.opening.references import read_local_manifest, versions
from hubmerge.progress import Progress
from hubmerge.weights.kept_shares import KeptShares


def check_result(hub: Hub, prepared: PreparedMerge) -> None:
    """Raise HubmergeError if the merge cannot be written to its folder, or cannot be pushed."""
    request, lora = prepared.request, prepared.lora
    if prepared.existing is None:
        if lora is not None:
            check_lora_out(prepared.plan, lora, prepared.folder, request.replace)
        else:
            check_out(prepared.plan, prepared.folder, request.replace)
    if request.push is not None:
        _check_push(hub, request)


def _check_push(hub: Hub, request: MergeRequest) -> None:
    repo_id = str(request.push.repo_id) if request.push else ""
    if request.pull_request:
        check_can_open_pull_request(hub, repo_id)
    check_repository_kind(hub, repo_id, "merge")


def write_and_push(
    hub: Hub, prepared: PreparedMerge, existing: Manifest | None, progress: Progress
) -> MergeResult:
    """Merge into the folder, unless the merge is `existing` there; push or propose the result."""
    request, out = prepared.request, prepared.folder
    if request.push is not None and not request.pull_request:
        ensure_repo(hub, str(request.push.repo_id), request.private)
    if existing is None:
        _write(prepared, progress)
    manifest = existing or read_local_manifest(out)
    assert manifest is not None  # written above
    if request.push is None:
        return MergeResult(out, manifest)
    publication = folder_publication(out, manifest, request.push)
    if request.pull_request:
        proposal = open_pull_request(hub, publication)
        return MergeResult(out, manifest, proposal.commit, proposal.url)
    return MergeResult(out, manifest, publish(hub, publication))


def _write(prepared: PreparedMerge, progress: Progress) -> None:
    """Write the merge to its folder, with heads, manifest, lock and card."""
    request, plan, lora = prepared.request, prepared.plan, prepared.lora

    def finish(folder: Path, shares: KeptShares | None = None) -> None:
        write_heads(prepared.planned.heads, folder)
        manifest = replace(with_shares(prepared.manifest, shares), versions=versions())
        finalize_folder(folder, manifest, prepared.lock)
        if request.config is not None:  # as mergekit does; the manifest does not list it
            (folder / CONFIG_FILE).write_bytes(request.config.text)

    if lora is not None:
        merge_to_lora(plan, lora, prepared.folder, finish, request.replace, progress)
    else:
        merge(
            plan,
            prepared.folder,
            replace=request.replace,
            progress=progress,
            threads=request.threads,
            device=request.device,
            finish=finish,
        )
