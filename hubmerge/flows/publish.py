"""hubmerge publish: checkpoint folders on disk -> step revisions of a repository, each tagged."""

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
from hubmerge.hub.commit_contents import STATE, STATE_BYTES, step_in_state
from hubmerge.hub.fetch import list_files, same_bytes, wanted
from hubmerge.hub.publish import Publication, ensure_repo, publish
from hubmerge.hub.step_names import list_refs
from hubmerge.kinds import EXPERT, MOE
from hubmerge.manifest import Manifest, files_digest
from hubmerge.merging.plan import Expert, MergePlan, check
from hubmerge.merging.registry import method
from hubmerge.opening.integrity import check_sealed, files_in
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.publication import CARD, check_room, seal, step_publication
from hubmerge.opening.references import open_ref, read_local_manifest, source_of, versions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_of, step_tag
from hubmerge.tasks.task import Task
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

_WAY_OUT = "Name a folder that holds checkpoint-64, step64 or the like, with safetensors files."


@dataclass(frozen=True)
class Saved:
    """A checkpoint folder on disk and its step; its manifest if it is one of ours."""

    folder: Path
    step: int
    checkpoint: Checkpoint
    manifest: Manifest | None

    @property
    def files(self) -> dict[str, Path]:
        """What of a folder is published, by its path: what would be fetched, so no pickles."""
        files = {name: path for name, path in files_in(self.folder).items() if path.is_file()}
        return {name: files[name] for name in wanted(files)}


@dataclass(frozen=True)
class Prepared:
    """Everything checked: the steps, rising, and, where base and task are known, their manifest."""

    to: str
    steps: tuple[Saved, ...]
    manifest: Manifest | None


def prepare(hub: Hub, folder: Path, to: str, base: ModelRef | None, task: Task | None) -> Prepared:
    """Find the checkpoints of a folder and check them all before anything is sent.

    Raises UsageError for a folder without any, CheckpointError for what cannot be opened or does
    not fit the base, IntegrityError for a repository that holds something else.
    """
    if (base is None) != (task is None):
        raise UsageError(
            "A manifest needs both --base and --task.", "Give both, or neither to publish without."
        )
    steps = _found(folder)
    kind, manifest = _kind(steps), None
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
    if not _is_begun(hub, to, steps):
        check_room(hub, to, kind)
    return Prepared(to, steps, manifest)


def publish_steps(
    hub: Hub, prepared: Prepared, beside: Path, progress: Progress, *, private: bool = False
) -> dict[int, str]:
    """Publish every step and return step -> commit; doing so again changes nothing.

    `beside` is a folder for what is being sent. Raises IntegrityError where a tag stands already
    for other bytes.
    """
    ensure_repo(hub, prepared.to, private)
    beside.mkdir(parents=True, exist_ok=True)
    commits: dict[int, str] = {}
    for saved in prepared.steps:
        progress(f"{prepared.to}@{step_tag(saved.step)}", len(commits), len(prepared.steps))
        with _staged(saved, beside) as folder:
            commits[saved.step] = publish(hub, _publication(saved, folder, prepared))
    return commits


def _found(folder: Path) -> tuple[Saved, ...]:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", _WAY_OUT)
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    found, problems = list[Saved](), list[str]()
    for path in inner:
        if step_of(path.name) is not None:
            try:
                found.append(_saved(path))
            except HubmergeError as error:
                problems.append(error.message)
    steps = [one.step for one in found]
    problems += [
        f"Two folders hold step {step}." for step in sorted({*steps}) if steps.count(step) > 1
    ]
    raise_together(CheckpointError, problems, "Mend or move them, and run the command again.")
    if not found:
        raise UsageError(f"{folder} holds no checkpoints.", _WAY_OUT)
    return tuple(sorted(found, key=lambda one: one.step))


def _saved(folder: Path) -> Saved:
    """A folder whose trainer state, or manifest, says its step; else its name does."""
    manifest = read_local_manifest(folder)
    if manifest is not None:
        check_sealed(folder, manifest, str(folder))
    said = [manifest.step if manifest else None, _state_of(folder), step_of(folder.name)]
    (step, *_) = [step for step in said if step is not None]
    return Saved(folder, step, open_checkpoint(folder), manifest)


def _kind(steps: Sequence[Saved]) -> str:
    """The kind that a repository of these steps has: of experts or of mixtures."""
    kinds = {MOE if one.checkpoint.is_moe else EXPERT for one in steps}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{steps[0].folder.parent} holds experts and mixtures.",
            "Publish them from two folders, in two repositories.",
        )
    return kinds.pop()


def _state_of(folder: Path) -> int | None:
    state = folder / STATE
    if not state.is_file():
        return None
    with state.open("rb") as file:
        return step_in_state(file.read(STATE_BYTES))


def _check_fit(base: Opened, steps: Sequence[Saved]) -> None:
    """Every checkpoint could be merged on the base: what else would its manifest be worth?"""
    average = method("average")
    experts = tuple(Expert(one.checkpoint, str(one.step), label=str(one.folder)) for one in steps)
    check(MergePlan(base.checkpoint, experts, average, average.params()))


def _layout(saved: Saved) -> str:
    if saved.checkpoint.kind == "lora":
        return "peft"
    open_clip = (saved.folder / "open_clip_config.json").is_file()
    return "open_clip" if open_clip else "transformers"


def _is_begun(hub: Hub, to: str, steps: Sequence[Saved]) -> bool:
    """Whether main of the repository holds a step of ours, tagged or left untagged by a crash."""
    try:
        head = list_refs(hub, to).branches.get("main")
    except NotOnHub:
        return False
    listed = list_files(hub, Revision(ModelRef(to), head)) if head else {}
    return any(
        all(
            name in listed and same_bytes(one.folder / name, listed[name])
            for name in one.checkpoint.weight_names()
        )
        for one in steps
    )


@contextmanager
def _staged(saved: Saved, beside: Path) -> Iterator[Path]:
    """The files to publish in a folder of their own; linked, not copied, where that can be."""
    with TemporaryDirectory(dir=beside) as name:
        folder = Path(name)
        for name, path in saved.files.items():
            source, target = path.resolve(), folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        yield folder


def _publication(saved: Saved, folder: Path, prepared: Prepared) -> Publication:
    manifest = saved.manifest
    if manifest is None and prepared.manifest is not None:
        (folder / CARD).unlink(missing_ok=True)
        seal(folder, dataclasses.replace(prepared.manifest, step=saved.step))
        manifest = read_local_manifest(folder)
    if manifest is not None and manifest.validation:
        return step_publication(folder, manifest, prepared.to)
    digest = files_digest({name: hash_file(path) for name, path in files_in(folder).items()})
    of_task = f" of {manifest.task_name}" if manifest and manifest.task_name else ""
    return Publication(
        repo_id=prepared.to,
        folder=folder,
        title=f"Step {saved.step}{of_task}",
        trailer={"step": str(saved.step), "files": digest},
        tag=step_tag(saved.step),
    )
