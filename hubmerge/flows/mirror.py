"""hubmerge hub pull and push: move repositories between Hubs with tags, history and large files.

Commits keep their SHA, so locks and cards that pin them stay valid. A move goes through a folder,
which is the target or source itself where the move is one to or from a folder. Objects come before
refs; what has arrived is not sent again when the command is repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.git_remote import GitRemote
from hubmerge.hub.large_files import download_large_file, upload_large_files
from hubmerge.hub.mirror_folder import LargeFile, MirroredRepository, MirrorFolder, Origin
from hubmerge.progress import ByteProgress, Progress
from hubmerge.server.names import RepoId, is_sha
from hubmerge.server.pushes import BRANCH, TAG


@dataclass(frozen=True)
class Transfer:
    """A repository to move: its name at source and target, and a branch or tag if not all."""

    source: RepoId
    target: RepoId
    revision: str | None = None


@dataclass(frozen=True)
class TransferResult:
    """What was moved: refs that are new or moved, refs that were there, large files and bytes."""

    transfer: Transfer
    refs: tuple[str, ...]
    unchanged: int
    files: int
    bytes: int


def mirror(
    source: Hub | MirrorFolder,
    target: Hub | MirrorFolder,
    transfers: Sequence[Transfer],
    work: Path,
    progress: Progress,
) -> list[TransferResult]:
    """Move repositories; `work` is an own folder for a move between two Hubs, removed at the end.

    Raises NotOnHub for what is not there, IntegrityError for a file whose SHA differs, UsageError
    for a target that has other commits, before a file or ref of that repository is written there;
    Busy if another process uses the folder.
    """
    folder = next((end for end in (source, target) if isinstance(end, MirrorFolder)), None)
    if isinstance(source, MirrorFolder) and not source.folder.is_dir():
        raise NotOnHub(
            f"There is no folder {source.folder}.", "`hubmerge hub push --to FOLDER` makes one."
        )
    middle = folder or MirrorFolder(work)
    with middle.lock():
        moved = [_move(source, target, middle, transfer, progress) for transfer in transfers]
    if folder is None:
        shutil.rmtree(work, ignore_errors=True)
    return moved


def _move(
    source: Hub | MirrorFolder,
    target: Hub | MirrorFolder,
    middle: MirrorFolder,
    transfer: Transfer,
    progress: Progress,
) -> TransferResult:
    # In the folder of a target, a repository has the name that it gets there.
    name = transfer.target if target is middle else transfer.source
    repository = middle.repository(name)
    if isinstance(source, Hub):
        refs, before = _pull(source, transfer, repository, progress)
    else:
        refs, before = _read_refs(repository, transfer.revision), {}
    files = repository.large_files(refs)
    if isinstance(source, MirrorFolder):
        _check_files(middle, files, progress)
    if isinstance(target, Hub):
        before, sent = _push(target, transfer.target, repository, refs, files, progress)
    else:
        sent = files
    new = tuple(sorted(name for name, oid in refs.items() if before.get(name) != oid))
    size = sum(file.size for file in sent)
    return TransferResult(transfer, new, len(refs) - len(new), len(sent), size)


def _pull(
    hub: Hub, transfer: Transfer, repository: MirroredRepository, progress: Progress
) -> tuple[dict[str, str], dict[str, str]]:
    """Bring a repository into a folder; returns its refs, and those that the folder had before."""
    id = transfer.source
    info = hub.call(
        f"reading {id}", lambda api: api.repo_info(str(id), repo_type=id.kind.removesuffix("s"))
    )
    remote = GitRemote(hub, id)
    refs = _choose(remote.refs(), transfer)
    repository.create(Origin(hub.name, bool(info.private)))
    before = repository.refs()
    remote.fetch(refs, repository)
    blobs = repository.mirror.blobs
    missing = [file for file in repository.large_files(refs) if not blobs.has(file.oid)]
    bar = ByteProgress(progress, f"downloading {id}", sum(file.size for file in missing))
    for file in missing:
        download_large_file(hub, id, file, repository.mirror)
        bar.add(file.size)
    repository.write_refs(refs)
    return refs, before


def _read_refs(repository: MirroredRepository, revision: str | None) -> dict[str, str]:
    if not repository.exists:
        others = [str(id) for id in repository.mirror.repository_ids()]
        raise NotOnHub(
            f"{repository.mirror.folder} has no {repository.id}.",
            f"It has {', '.join(others)}." if others else "Pull a repository into it first.",
        )
    return _choose(repository.refs(), Transfer(repository.id, repository.id, revision))


def _choose(refs: Mapping[str, str], transfer: Transfer) -> dict[str, str]:
    """The refs to move: all, or the branch or tag that is the revision."""
    name = transfer.revision
    if name is None:
        return dict(refs)
    chosen = next((ref for ref in (BRANCH + name, TAG + name) if ref in refs), None)
    if chosen is None:
        names = sorted(ref.split("/", 2)[2] for ref in refs)
        known = f"It has {', '.join(names[:20])}." if names else ""
        hint = f"Name a branch or a tag, not a commit. {known}" if is_sha(name) else known
        raise NotOnHub(f"{transfer.source} has no branch or tag {name}.", hint)
    return {chosen: refs[chosen]}


def _check_files(mirror: MirrorFolder, files: Sequence[LargeFile], progress: Progress) -> None:
    """Raise IntegrityError unless each large file is in the folder and has its SHA."""
    wrong = []
    bar = ByteProgress(progress, "checking files", sum(file.size for file in files))
    for file in files:
        path = mirror.blobs.path(file.oid)
        # Read again: a disk or a cable may have changed it.
        if not path.is_file() or hash_file(path, bar.add) != file.oid:
            wrong.append(f"{path} ({file.path}) is missing, or its SHA differs.")
    raise_together(IntegrityError, wrong, "Copy the folder again from where it was made.")


def _push(
    hub: Hub,
    id: RepoId,
    repository: MirroredRepository,
    refs: Mapping[str, str],
    files: Sequence[LargeFile],
    progress: Progress,
) -> tuple[dict[str, str], Sequence[LargeFile]]:
    """Send a repository to a Hub; returns the refs that it had before, and the files it lacked."""
    kind, private = id.kind.removesuffix("s"), repository.origin.private
    hub.call(
        f"creating {id}",
        lambda api: api.create_repo(
            str(id), repo_type=kind, private=private, exist_ok=True,
            space_sdk="static" if kind == "space" else None,
        ),
    )  # fmt: skip
    remote = GitRemote(hub, id)
    before = remote.refs()
    changed = {name: oid for name, oid in refs.items() if before.get(name) != oid}
    _check_conflicts(hub, id, repository, changed, before)
    sent = files if changed else ()
    upload_large_files(hub, id, sent, repository.mirror, progress)
    problems = remote.push(changed, repository) if changed else {}
    after = remote.refs()
    problems |= {
        name: "it was changed meanwhile"
        for name in changed
        if name not in problems and after.get(name) != refs[name]
    }
    raise_together(
        IntegrityError,
        [f"{hub.name} refused {name} of {id}: {problem}." for name, problem in problems.items()],
        "Run the command again.",
    )
    return before, sent


def _check_conflicts(
    hub: Hub,
    id: RepoId,
    repository: MirroredRepository,
    changed: Mapping[str, str],
    before: Mapping[str, str],
) -> None:
    """Raise UsageError for refs of the target that are not ancestors of what is to be there."""
    problems = []
    for name, oid in changed.items():
        if (old := before.get(name)) is None:
            continue
        if name.startswith(BRANCH) and repository.reaches(oid, old):
            continue
        if name == BRANCH + "main" and _is_new(hub, id):
            continue
        problems.append(f"{id} on {hub.name} has another {name.split('/', 2)[2]}: {old[:7]}.")
    raise_together(
        UsageError, problems, "Give it another name with --as, or delete what is there first."
    )


def _is_new(hub: Hub, id: RepoId) -> bool:
    """Whether a repository has only the commit that made it."""
    kind = id.kind.removesuffix("s")
    commits = hub.call(
        f"reading the commits of {id}", lambda api: api.list_repo_commits(str(id), repo_type=kind)
    )
    return len(commits) == 1 and commits[0].title == "initial commit"
