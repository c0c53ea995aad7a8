"""hubmerge publish: publish the checkpoints of a run as tagged step revisions of a repository."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hubmerge.durable import hash_file
from hubmerge.errors import HubUnreachable
from hubmerge.flows.prepared_publish import CheckpointFolder, PreparedPublish
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, ensure_repo, publish
from hubmerge.manifest import Manifest, files_digest
from hubmerge.opening.integrity import files_in
from hubmerge.opening.publication import (
    CARD,
    add_figures,
    finalize_folder,
    step_publication,
)
from hubmerge.opening.references import read_local_manifest
from hubmerge.opening.step_norms import measure_step_norms
from hubmerge.progress import Progress
from hubmerge.refs import step_tag


def publish_steps(
    hub: Hub, prepared: PreparedPublish, staging: Path, progress: Progress, *, private: bool = False
) -> dict[int, str]:
    """Publish every step and return step -> commit; a second call changes nothing.

    `staging` is a folder for files that are being uploaded. Raises IntegrityError if a tag exists
    for other bytes, and HubUnreachable, with what is left, if the Hub does not answer or asks to
    wait; the next call goes on there.
    """
    ensure_repo(hub, prepared.to, private)
    staging.mkdir(parents=True, exist_ok=True)
    commits: dict[int, str] = {}
    for checkpoint in prepared.steps:
        progress(f"{prepared.to}@{step_tag(checkpoint.step)}", len(commits), len(prepared.steps))
        if commit := prepared.published.get(checkpoint.step):
            commits[checkpoint.step] = commit
            continue
        with _stage_files(checkpoint, staging) as folder:
            publication = _make_publication(checkpoint, folder, prepared)
            try:
                commits[checkpoint.step] = publish(hub, publication)
            except HubUnreachable as error:
                left = len(prepared.steps) - len(commits)
                raise HubUnreachable(
                    f"{left} of {len(prepared.steps)} steps are not published yet, from "
                    f"{step_tag(checkpoint.step)} on: {error.message}",
                    error.hint,
                ) from error
    return commits


@contextmanager
def _stage_files(checkpoint: CheckpointFolder, staging: Path) -> Iterator[Path]:
    """Put the files to publish into a temporary folder, as hard links where possible."""
    with TemporaryDirectory(dir=staging) as name:
        folder = Path(name)
        for name, path in checkpoint.files.items():
            source, target = path.resolve(), folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        yield folder


def _make_publication(
    checkpoint: CheckpointFolder, folder: Path, prepared: PreparedPublish
) -> Publication:
    manifest = checkpoint.manifest
    if manifest is not None and manifest.run:
        return step_publication(folder, manifest, prepared.to)
    if manifest is None and prepared.manifest is not None:
        (folder / CARD).unlink(missing_ok=True)
        finalize_folder(folder, _step_manifest(checkpoint, folder, prepared))
        manifest = read_local_manifest(folder)
        assert manifest is not None
        add_figures(folder, manifest)
    digest = files_digest({name: hash_file(path) for name, path in files_in(folder).items()})
    of_task = f" of {manifest.task_name}" if manifest and manifest.task_name else ""
    return Publication(
        repo_id=prepared.to,
        folder=folder,
        title=f"Step {checkpoint.step}{of_task}",
        trailer={"step": str(checkpoint.step), "files": digest},
        tag=step_tag(checkpoint.step),
    )


def _step_manifest(
    checkpoint: CheckpointFolder, folder: Path, prepared: PreparedPublish
) -> Manifest:
    """The manifest of one step: its curve, and the norms of its task vector."""
    assert prepared.manifest is not None
    assert prepared.base is not None
    found = checkpoint.found
    stopped = {"stopped": "early"} if found.state and found.state.stopped_early else {}
    return dataclasses.replace(
        prepared.manifest,
        step=checkpoint.step,
        layout=checkpoint.layout,
        training={**prepared.manifest.training, **stopped},
        validation=prepared.run.points(found),
        norms=measure_step_norms(prepared.base.checkpoint, folder),
    )
