"""A lock written by hand: two experts, three steps, three policies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost, UniformPoint
from hubmerge.opening.bases import common_base
from hubmerge.opening.references import open_ref, pin_revision, source_of
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.source import Source

ROWS = 1000
ACCURACY = {"last": 0.4, "uniform": 0.45, "coordinate": 0.5}


def make_lock(
    hub: Hub,
    repos: Sequence[str],
    method: str = "ties",
    params: Mapping[str, Any] | None = None,
    base: ModelRef | None = None,
) -> Lock:
    """A lock that pins every step of two repositories.

    The chosen pick, `coordinate`, has the first step of the first and the last step of the second
    at weight 0.5; the other picks are `last` and `uniform`.
    """
    steps = [[pin_now(hub, str(step.ref)) for step in list_steps(hub, repo)] for repo in repos]
    tasks = [str(pins[0].source.task) for pins in steps]
    last = [pins[-1].source for pins in steps]
    coordinate = [steps[0][0].source, dataclasses.replace(last[1], weight=0.5)]
    picks = {
        "last": last,
        "uniform": [pins[1].source for pins in steps],
        "coordinate": coordinate,
    }
    return Lock(
        base=pin_now(
            hub, str(base or common_base(hub, [pin_revision(hub, list_steps(hub, repos[0])[0])]))
        ),
        experts=tuple(pin for pins in steps for pin in pins),
        tasks=tuple(LockedTask(task, None, ROWS) for task in tasks),
        method=method,
        chosen="coordinate",
        picks=tuple(
            make_pick(
                name, experts, {"density": 0.2, "scale": 1.0} if params is None else params, tasks
            )
            for name, experts in picks.items()
        ),
        swaps={},
        uniform=(UniformPoint(4, 0.45, stderr_of(dict.fromkeys(tasks, 0.45), ROWS)),),
        seed=0,
        spent=SelectionCost(9, 9000),
        conclusive=True,
        command="hubmerge select " + " ".join(repos),
    )


def write_lock(lock: Lock, path: Path) -> Path:
    """Write a lock to a path; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lock.to_bytes())
    return path


def pin_now(hub: Hub, requested: str) -> Pin:
    """Pin a checkpoint to its current commit."""
    model = open_ref(hub, parse_ref(requested))
    ref = model.revision.ref
    last = None if ref.repo_id is None else (list_steps(hub, ref.repo_id) or (None,))[-1]
    return Pin(requested, source_of(model, last=last), model.files)


def make_pick(
    policy: str, experts: Sequence[Source], params: Mapping[str, Any], tasks: Sequence[str]
) -> Pick:
    accuracy = ACCURACY[policy]
    gain = accuracy - ACCURACY["last"]
    half = 0.0 if policy == "last" else 0.04
    shares = dict.fromkeys(tasks, accuracy)
    return Pick(
        policy, tuple(experts), params, accuracy, stderr_of(shares, ROWS), shares,
        (gain, gain - half, gain + half), 3,
    )  # fmt: skip


def stderr_of(shares: Mapping[str, float], rows: int) -> float:
    """The standard error of the mean accuracy of tasks with so many rows each."""
    variances = [share * (1 - share) / rows for share in shares.values()]
    return math.sqrt(math.fsum(variances)) / len(variances)


def copy_steps(api: HfApi, source: str, target: str, scratch: Path) -> None:
    """Copy the steps of a repository into a new one, through a scratch folder."""
    api.create_repo(target)
    for step in (2, 4, 8):
        folder = scratch / source / str(step)
        if not folder.exists():
            api.snapshot_download(source, revision=f"step{step}", local_dir=folder)
        commit_and_tag(api, target, step, folder)


def commit_and_tag(api: HfApi, repo: str, step: int, folder: Path) -> str:
    """Commit a folder with a title without a step, and tag it."""
    files = [path for path in folder.iterdir() if path.is_file()]
    adds = [CommitOperationAdd(path.name, str(path)) for path in files]
    commit = api.create_commit(repo, adds, commit_message="an upload")
    api.create_tag(repo, tag=f"step{step}", revision=commit.oid)
    return str(commit.oid)


def move_tag(api: HfApi, repo: str, step: int) -> tuple[str, str]:
    """Move the tag of a step to a new commit; returns the old and the new commit."""
    old = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}[f"step{step}"]
    new = api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=repo).oid
    api.delete_tag(repo, tag=f"step{step}")
    api.create_tag(repo, tag=f"step{step}", revision=new)
    return str(old), str(new)
