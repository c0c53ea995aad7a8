"""hubmerge publish: publish checkpoint folders as tagged step revisions of a repository."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError, HubmergeError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.commit_contents import TRAINER_STATE, TRAINER_STATE_BYTES, parse_global_step
from hubmerge.hub.fetch import files_to_download, list_files, same_bytes
from hubmerge.hub.publish import Publication, ensure_repo, publish
from hubmerge.hub.step_names import list_refs
from hubmerge.kinds import EXPERT, MOE
from hubmerge.manifest import Manifest, files_digest
from hubmerge.merging.plan import Expert, MergePlan, find_checkpoint_problems
from hubmerge.merging.registry import method
from hubmerge.opening.integrity import check_manifest, files_in
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.publication import (
    CARD,
    check_repository_kind,
    finalize_folder,
    step_publication,
)
from hubmerge.opening.references import open_ref, read_local_manifest, source_of, versions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_of, step_tag
from hubmerge.tasks.task import Task
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.expert_stacks import restack
from hubmerge.weights.match_options import VOCABULARY_HINT, MatchOptions

_HINT = "Name a folder with subfolders like checkpoint-64 or step64 that have safetensors files."


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint folder on disk and its step; its manifest if hubmerge made it."""

    folder: Path
    step: int
    checkpoint: Checkpoint
    manifest: Manifest | None

    @property
    def files(self) -> dict[str, Path]:
        """The files to publish, by path: those that would be fetched, so no pickles."""
        files = {name: path for name, path in files_in(self.folder).items() if path.is_file()}
        return {name: files[name] for name in files_to_download(files)}


@dataclass(frozen=True)
class PreparedPublish:
    """Checkpoints that were checked, by rising step; with a manifest if base and task are known."""

    to: str
    steps: tuple[CheckpointFolder, ...]
    manifest: Manifest | None


def prepare_publish(
    hub: Hub, folder: Path, to: str, base: ModelRef | None, task: Task | None
) -> PreparedPublish:
    """Find the checkpoints of a folder and check them all before anything is uploaded.

    Raises UsageError for a folder without checkpoints, CheckpointError for one that cannot be
    opened or does not fit the base, IntegrityError for a repository with other contents.
    """
    if (base is None) != (task is None):
        raise UsageError(
            "A manifest needs both --base and --task.",
            "Give both, or neither to publish without a manifest.",
        )
    steps = _find_checkpoints(folder)
    kind, manifest = _repository_kind(steps), None
    if base is not None and task is not None:
        opened = open_ref(hub, base)
        _check_fit(opened, steps)
        manifest = Manifest(
            kind=EXPERT,
            base=source_of(opened),
            task=task.id,
            task_kind=task.spec.kind,
            last_step=steps[-1].step,
            layout=_layout(steps[-1]),
            command="hubmerge publish",
            versions=versions(),
        )
    if not _holds_our_step(hub, to, steps):
        check_repository_kind(hub, to, kind)
    return PreparedPublish(to, steps, manifest)


def publish_steps(
    hub: Hub, prepared: PreparedPublish, staging: Path, progress: Progress, *, private: bool = False
) -> dict[int, str]:
    """Publish every step and return step -> commit; a second call changes nothing.

    `staging` is a folder for files that are being uploaded. Raises IntegrityError if a tag exists
    for other bytes.
    """
    ensure_repo(hub, prepared.to, private)
    staging.mkdir(parents=True, exist_ok=True)
    commits: dict[int, str] = {}
    for checkpoint in prepared.steps:
        progress(f"{prepared.to}@{step_tag(checkpoint.step)}", len(commits), len(prepared.steps))
        with _stage_files(checkpoint, staging) as folder:
            commits[checkpoint.step] = publish(hub, _make_publication(checkpoint, folder, prepared))
    return commits


def _find_checkpoints(folder: Path) -> tuple[CheckpointFolder, ...]:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", _HINT)
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    checkpoints, problems = list[CheckpointFolder](), list[str]()
    for path in paths:
        if step_of(path.name) is not None:
            try:
                checkpoints.append(_read_checkpoint(path))
            except HubmergeError as error:
                problems.append(error.message)
    steps = [checkpoint.step for checkpoint in checkpoints]
    problems += [
        f"Two folders hold step {step}." for step in sorted({*steps}) if steps.count(step) > 1
    ]
    raise_together(CheckpointError, problems, "Repair or move them, and run the command again.")
    if not checkpoints:
        raise UsageError(f"{folder} holds no checkpoints.", _HINT)
    return tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))


def _read_checkpoint(folder: Path) -> CheckpointFolder:
    """Read a checkpoint; its step is in the manifest, else in the trainer state or folder name."""
    manifest = read_local_manifest(folder)
    if manifest is not None:
        check_manifest(folder, manifest, str(folder))
    steps = [manifest.step if manifest else None, _trainer_step(folder), step_of(folder.name)]
    (step, *_) = [step for step in steps if step is not None]
    return CheckpointFolder(folder, step, open_checkpoint(folder), manifest)


def _repository_kind(steps: Sequence[CheckpointFolder]) -> str:
    """Return the kind of a repository of these steps: experts or mixtures of experts."""
    kinds = {MOE if checkpoint.checkpoint.is_moe else EXPERT for checkpoint in steps}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{steps[0].folder.parent} holds experts and mixtures.",
            "Publish them from two folders to two repositories.",
        )
    return kinds.pop()


def _trainer_step(folder: Path) -> int | None:
    state_file = folder / TRAINER_STATE
    if not state_file.is_file():
        return None
    with state_file.open("rb") as file:
        return parse_global_step(file.read(TRAINER_STATE_BYTES))


def _check_fit(base: OpenedModel, steps: Sequence[CheckpointFolder]) -> None:
    """Check that every checkpoint can be merged on the base that its manifest will name.

    What `merge` decides by its options, heads, ties and vocabularies, is not decided here.
    """
    average = method("average")
    experts = tuple(
        Expert(restack(base.checkpoint, s.checkpoint), str(s.step), label=str(s.folder))
        for s in steps
    )
    options = MatchOptions(tied="untie", heads="keep")
    plan = MergePlan(base.checkpoint, experts, average, average.params(), options=options)
    problems = [pair for pair in find_checkpoint_problems(plan) if pair[1] != VOCABULARY_HINT]
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))


def _layout(checkpoint: CheckpointFolder) -> str:
    if checkpoint.checkpoint.kind == "lora":
        return "peft"
    open_clip = (checkpoint.folder / "open_clip_config.json").is_file()
    return "open_clip" if open_clip else "transformers"


def _holds_our_step(hub: Hub, to: str, steps: Sequence[CheckpointFolder]) -> bool:
    """Return whether main has one of these steps, tagged or left untagged by a crash."""
    try:
        head = list_refs(hub, to).branches.get("main")
    except NotOnHub:
        return False
    files = list_files(hub, Revision(ModelRef(to), head)) if head else {}
    return any(
        all(
            name in files and same_bytes(checkpoint.folder / name, files[name])
            for name in checkpoint.checkpoint.weight_file_names()
        )
        for checkpoint in steps
    )


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
    if manifest is None and prepared.manifest is not None:
        (folder / CARD).unlink(missing_ok=True)
        finalize_folder(folder, dataclasses.replace(prepared.manifest, step=checkpoint.step))
        manifest = read_local_manifest(folder)
    if manifest is not None and manifest.run:
        return step_publication(folder, manifest, prepared.to)
    digest = files_digest({name: hash_file(path) for name, path in files_in(folder).items()})
    of_task = f" of {manifest.task_name}" if manifest and manifest.task_name else ""
    return Publication(
        repo_id=prepared.to,
        folder=folder,
        title=f"Step {checkpoint.step}{of_task}",
        trailer={"step": str(checkpoint.step), "files": digest},
        tag=step_tag(checkpoint.step),
    )
