"""Where a run is, a folder or a repository: its checkpoints with their files, read on demand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, list_files, read_file
from hubmerge.hub.resolve import find_steps, format_ref
from hubmerge.opening.integrity import files_in
from hubmerge.opening.references import pin
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_of
from hubmerge.trainer_runs.run_settings import Read
from hubmerge.trainer_runs.written_history import epoch_steps, written_history

_MIN_CONFIDENCE = 0.5  # the same as for a step requested by its number
_MAX_READ_BYTES = 64 << 20
_THREADS = 8
_MODULE_FOLDER = re.compile(r"\d+_\w+|additional_chat_templates")
# Folders in a run that are no checkpoints of it, and what they are.
_OTHERS = {
    "merged": "the adapter merged into its base, as axolotl writes it",
    "final": "a model without a step",
    "last_run_prepared": "prepared data",
    "last-run-prepared": "prepared data",
}
_UNFINISHED = re.compile(r"tmp-checkpoint-\d+|checkpoint-\d+\.tmp|\.tmp-.*")
_EPOCH_NOTE = re.compile(r"epoch ([0-9]{1,12})(?:;|$)")
_HINT = "Name a folder with subfolders like checkpoint-64 or step64 that have safetensors files."


@dataclass(frozen=True)
class CheckpointSource:
    """One checkpoint, not opened yet: `files` maps the path of each of its files to its size.

    `named_step` is the step in its name, None for the model at the root of a run. `read` returns a
    small file, `folder` all files that are published, fetched where they are on a Hub. `label` is
    what to type for it, and `run` numbers the runs of a Hub's history.
    """

    name: str
    label: str
    named_step: int | None
    files: Mapping[str, int]
    read: Read
    folder: Callable[[], Path]
    run: int | None = None


@dataclass(frozen=True)
class RunSource:
    """A run: its checkpoints, the model at its root if there is one, and what was left out.

    `read_root` reads a small file beside the checkpoints. `left_out` are names with a reason.
    """

    label: str
    checkpoints: tuple[CheckpointSource, ...]
    root: CheckpointSource | None
    read_root: Read
    left_out: tuple[tuple[str, str], ...] = ()
    is_local: bool = True


def open_run_source(hub: Hub, ref: ModelRef, progress: Progress) -> RunSource:
    """The run in a folder or a repository; raises UsageError if there is none."""
    if ref.path is not None:
        return _local_source(ref.path)
    if ref.revision or ref.subfolder:
        raise UsageError(
            f"{ref} names one revision; a run is published from its whole repository.",
            f"Write {ref.repo_id}.",
        )
    return _hub_source(hub, str(ref.repo_id), progress)


def _local_source(folder: Path) -> RunSource:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", _HINT)
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    steps = [path for path in paths if step_of(path.name) is not None]
    unfinished = [path for path in paths if _UNFINISHED.fullmatch(path.name)]
    checkpoints = tuple(_local_checkpoint(p, p.name) for p in steps if p not in unfinished)
    root = _local_checkpoint(folder, "", is_root=True)
    left_out = [(p.name, "an unfinished checkpoint, which Trainer had not renamed yet")
                for p in unfinished]  # fmt: skip
    left_out += [
        (path.name, reason) for path in paths if (reason := _OTHERS.get(path.name)) is not None
    ]
    has_root = any(name.endswith(".safetensors") for name in root.files if "/" not in name)
    if not checkpoints and not has_root:
        raise UsageError(f"{folder} holds no checkpoints.", _HINT)
    return RunSource(
        str(folder), checkpoints, root if has_root else None, partial(_read_local, folder),
        tuple(left_out),
    )  # fmt: skip


def _local_checkpoint(folder: Path, name: str, is_root: bool = False) -> CheckpointSource:
    """A checkpoint folder; of a root only its own files, as checkpoints are below it."""
    if is_root:
        paths = [p for p in folder.iterdir() if p.is_file()]
        modules = [p for p in folder.iterdir() if p.is_dir() and _MODULE_FOLDER.fullmatch(p.name)]
        paths += [p for module in modules for p in module.rglob("*") if p.is_file()]
        files = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    else:
        files = {name: path for name, path in files_in(folder).items() if path.is_file()}
    return CheckpointSource(
        name=name,
        label=str(folder),
        named_step=None if is_root else step_of(name),
        files={name: path.stat().st_size for name, path in files.items()},
        read=partial(_read_local, folder),
        folder=lambda: folder,
    )


def _read_local(folder: Path, name: str) -> bytes | None:
    path = folder / name
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= _MAX_READ_BYTES:
            return path.read_bytes()
    return None


def _hub_source(hub: Hub, repo_id: str, progress: Progress) -> RunSource:
    """The last run in a repository: its folders and tags, or the commits that Trainer pushed."""
    main = pin(hub, ModelRef(repo_id)).revision
    read_root = partial(_read_hub, hub, main)
    revisions = _with_epochs(find_steps(hub, repo_id, progress), read_root)
    used = [r for r in revisions if r.step is not None and r.confidence >= _MIN_CONFIDENCE]
    last_run = max((r.run for r in used if r.run), default=None)
    left_out = [
        (format_ref(r), _reason(r, last_run)) for r in revisions if not _is_used(r, last_run)
    ]
    used = [revision for revision in used if _is_used(revision, last_run)]
    if not used:
        raise UsageError(
            f"{repo_id} holds no checkpoints.",
            f"`hubmerge steps {repo_id}` lists what it has.",
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        checkpoints = tuple(pool.map(partial(_hub_checkpoint, hub), used))
    return RunSource(
        main.label, checkpoints, None, read_root, tuple(left_out),
        is_local=False,
    )  # fmt: skip


def _with_epochs(revisions: Sequence[Revision], read_root: Read) -> list[Revision]:
    """The revisions, with the step of an epoch where the run's history has both."""
    known = [revision for revision in revisions if revision.step is not None]
    if len(known) == len(revisions):
        return known
    steps = epoch_steps(written_history(read_root))
    dated = []
    for revision in revisions:
        match = _EPOCH_NOTE.match(revision.note) if revision.step is None else None
        step = steps.get(int(match[1])) if match else None
        dated.append(replace(revision, step=step) if step is not None else revision)
    return dated


def _is_used(revision: Revision, last_run: int | None) -> bool:
    certain = revision.step is not None and revision.confidence >= _MIN_CONFIDENCE
    return certain and (revision.run is None or revision.run == last_run)


def _reason(revision: Revision, last_run: int | None) -> str:
    if revision.step is None:
        return f"its step is not known ({revision.note or revision.origin})"
    if revision.confidence < _MIN_CONFIDENCE:
        return revision.note or "its step is not certain"
    return f"of run {revision.run}; the last one, run {last_run}, is published"


def _hub_checkpoint(hub: Hub, revision: Revision) -> CheckpointSource:
    prefix = f"{revision.ref.subfolder}/" if revision.ref.subfolder else ""
    files = {
        path.removeprefix(prefix): file.size
        for path, file in list_files(hub, revision).items()
        if path.startswith(prefix)
    }
    return CheckpointSource(
        name=format_ref(revision).partition("@")[2] or format_ref(revision),
        label=format_ref(revision),
        named_step=revision.step,
        files=files,
        read=partial(_read_hub, hub, revision),
        folder=partial(fetch, hub, revision),
        run=revision.run,
    )


def _read_hub(hub: Hub, revision: Revision, name: str) -> bytes | None:
    try:
        return read_file(hub, revision, name)
    except IntegrityError:
        return None  # too large to be a setting or a history
