"""A plausible lock of a small world, written by hand: two experts, three steps, three policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.lock import Common, Lock, LockedTask, Pick, Pin, Spent
from hubmerge.manifest import Source
from hubmerge.opening.bases import common_base
from hubmerge.opening.references import open_ref, pin_revision, source_of
from hubmerge.refs import ModelRef, parse_ref

ACCURACY = {"last": 0.4, "uniform": 0.45, "coordinate": 0.5}


def lock_of(
    hub: Hub,
    repos: Sequence[str],
    method: str = "ties",
    params: Mapping[str, Any] | None = None,
    base: ModelRef | None = None,
) -> Lock:
    """Pin every step of two repositories.

    The chosen pick, `coordinate`, is the first step of the first and the last of the second at half
    its weight; `last` and `uniform` are rivals.
    """
    steps = [[pinned(hub, str(step.ref)) for step in list_steps(hub, repo)] for repo in repos]
    tasks = [str(its[0].source.task) for its in steps]
    last = [its[-1].source for its in steps]
    coordinate = [steps[0][0].source, dataclasses.replace(last[1], weight=0.5)]
    picks = {
        "last": last,
        "uniform": [its[1].source for its in steps],
        "coordinate": coordinate,
    }
    return Lock(
        base=pinned(
            hub, str(base or common_base(hub, [pin_revision(hub, list_steps(hub, repos[0])[0])]))
        ),
        experts=tuple(one for its in steps for one in its),
        tasks=tuple(LockedTask(task, None, 1000) for task in tasks),
        method=method,
        chosen="coordinate",
        picks=tuple(
            pick(name, experts, {"density": 0.2, "scale": 1.0} if params is None else params, tasks)
            for name, experts in picks.items()
        ),
        swaps={},
        uniform=(Common(4, 0.45, 0.01),),
        seed=0,
        spent=Spent(9, 9000),
        conclusive=True,
        command="hubmerge select " + " ".join(repos),
    )


def write(lock: Lock, path: Path) -> Path:
    """Write a lock where a test wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lock.to_bytes())
    return path


def pinned(hub: Hub, requested: str) -> Pin:
    """A checkpoint as it is now."""
    opened = open_ref(hub, parse_ref(requested))
    ref = opened.revision.ref
    last = None if ref.repo_id is None else (list_steps(hub, ref.repo_id) or (None,))[-1]
    return Pin(requested, source_of(opened, last=last), opened.files)


def pick(
    policy: str, experts: Sequence[Source], params: Mapping[str, Any], tasks: Sequence[str]
) -> Pick:
    accuracy = ACCURACY[policy]
    gain = (accuracy - ACCURACY["last"], 0.01, 0.12)
    shares = dict.fromkeys(tasks, accuracy)
    return Pick(policy, tuple(experts), params, accuracy, 0.01, shares, gain, 3)


def copy_steps(api: HfApi, theirs: str, ours: str, scratch: Path) -> None:
    """Make a repository of the steps of another, by way of a scratch folder."""
    api.create_repo(ours)
    for step in (2, 4, 8):
        folder = scratch / theirs / str(step)
        if not folder.exists():
            api.snapshot_download(theirs, revision=f"step{step}", local_dir=folder)
        tag(api, ours, step, folder)


def tag(api: HfApi, repo: str, step: int, folder: Path) -> str:
    """Commit a folder under a title that tells no step, and tag it."""
    files = [path for path in folder.iterdir() if path.is_file()]
    adds = [CommitOperationAdd(path.name, str(path)) for path in files]
    made = api.create_commit(repo, adds, commit_message="an upload")
    api.create_tag(repo, tag=f"step{step}", revision=made.oid)
    return str(made.oid)


def move(api: HfApi, repo: str, step: int) -> tuple[str, str]:
    """Put a tag on another commit; the old and the new one."""
    old = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}[f"step{step}"]
    new = api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=repo).oid
    api.delete_tag(repo, tag=f"step{step}")
    api.create_tag(repo, tag=f"step{step}", revision=new)
    return str(old), str(new)
