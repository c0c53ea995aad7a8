"""One repository: its settings, its branches and tags, and the commits that change its files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_atomic
from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import AddFile, AddLargeFile, Change, Pointer, parse_pointer
from hubmerge.server.git import Edit, Git
from hubmerge.server.http_errors import (
    BadRequest,
    Conflict,
    Forbidden,
    RevisionMissing,
    StaleParent,
)
from hubmerge.server.names import RepoId, check_path, check_ref
from hubmerge.server.pulls import PULL, Pull, Pulls, Status
from hubmerge.server.snapshot import Snapshot

BRANCH, TAG = "refs/heads/", "refs/tags/"

_MIN_PARENT_CHARS = 5
_MIN_SHA_CHARS = 7
_STALE_MESSAGE = "The branch was updated since you opened this page. Please refresh and try again."


@dataclass(frozen=True)
class RepoSettings:
    """Private: visible only with a token. Gated: visible, but reading its files needs a token."""

    created: datetime
    private: bool = False
    gated: Literal["auto", "manual", False] = False


class Repository:
    """A repository on disk. Only writers lock it: they write the objects first, the ref last."""

    def __init__(
        self, id: RepoId, folder: Path, blobs: BlobStore, write_lock: threading.Lock
    ) -> None:
        self.id = id
        self.folder = folder
        self._blobs = blobs
        self._write_lock = write_lock
        self._settings_file = folder / "hub.json"
        self._pulls = Pulls(folder)

    @property
    def settings(self) -> RepoSettings:
        """Its visibility and creation time."""
        fields = json.loads(self._settings_file.read_text())
        return RepoSettings(**{**fields, "created": datetime.fromisoformat(fields["created"])})

    def configure(self, settings: RepoSettings) -> None:
        fields = {**asdict(settings), "created": settings.created.isoformat()}
        write_atomic(self._settings_file, json.dumps(fields).encode())

    def snapshot(self, revision: str) -> Snapshot:
        """The commit of a branch, a tag, a full ref or a commit id; raises RevisionMissing."""
        with Git(self.folder) as git:
            return Snapshot(self.folder, self._blobs, _resolve(git, revision))

    def refs(self, prefix: str) -> dict[str, str]:
        """The names of branches or tags (BRANCH or TAG), and their commits."""
        with Git(self.folder) as git:
            return git.refs(prefix)

    def large_files(self) -> dict[str, tuple[str, Pointer]]:
        """The large files of all commits by their sha256, each with one of its names."""
        with Git(self.folder) as git:
            read = (
                (name, parse_pointer(git.read_blob(oid))) for oid, name in git.named_blobs().items()
            )
            return {pointer.oid: (name, pointer) for name, pointer in read if pointer}

    def create_ref(
        self, prefix: str, name: str, revision: str, message: str = "", author: str = "hub"
    ) -> None:
        """Create a branch or a tag, with or without a message; raises Conflict if it exists."""
        with Git(self.folder) as git, self._write_lock:
            sha = _resolve(git, revision)
            ref = prefix + check_ref(name)
            _add_ref(git, ref, git.write_tag(sha, name, message, author) if message else sha)

    def delete_ref(self, prefix: str, name: str) -> None:
        """Delete a tag, or a branch other than main; its commits stay."""
        if prefix + name == BRANCH + "main":
            raise Forbidden("The main branch cannot be deleted.")
        with Git(self.folder) as git, self._write_lock:
            if git.ref(prefix + name) is None:
                raise RevisionMissing(f"Invalid rev id: {name}")
            git.delete_ref(prefix + name)

    def commit(
        self,
        branch: str,
        changes: Iterable[Change],
        message: str,
        *,
        author: str,
        parent: str = "",
        when: datetime | None = None,
    ) -> str:
        """Add one commit to a branch, atomically; raises StaleParent if `parent` is not its head.

        An open pull request is a branch too, by its full name refs/pr/1.
        """
        if parent and len(parent) < _MIN_PARENT_CHARS:
            raise BadRequest(f"The parent commit {parent!r} is too short: 5 characters or more.")
        with Git(self.folder) as git, self._write_lock:
            ref = branch if branch.startswith(PULL) else BRANCH + branch
            head = _check_head(git, ref, branch, parent)
            sha = self._write_commit(git, head, changes, message, author, when or datetime.now(UTC))
            if not git.move_ref(ref, head, sha):
                raise StaleParent(_STALE_MESSAGE)
            return sha

    def open_pull(
        self, changes: Iterable[Change], message: str, *, author: str, parent: str = ""
    ) -> tuple[Pull, str]:
        """Open a pull request with one commit on top of `parent`, by default of main."""
        now = datetime.now(UTC)
        with Git(self.folder) as git, self._write_lock:
            start = _resolve(git, parent or "main")
            sha = self._write_commit(git, start, changes, message, author, now)
            pull = self._pulls.add(message.partition("\n")[0], author, now)
            _add_ref(git, pull.ref, sha)
            return pull, sha

    def pulls(self) -> list[Pull]:
        """The pull requests by number."""
        with Git(self.folder) as git:
            return [pull for pull in self._pulls.all() if git.ref(pull.ref)]

    def merge_pull(self, number: int) -> None:
        """Merge an open pull request by fast-forward; raises Conflict if main has moved on."""
        with Git(self.folder) as git, self._write_lock:
            pull = self._pulls.all()[number - 1]
            if pull.status != "open":
                raise Conflict(f"Pull request {number} is {pull.status}.")
            head, main = git.ref(pull.ref) or "", git.ref(BRANCH + "main") or ""
            if all(commit.id != main for commit in git.history(head)):
                raise Conflict(f"main has moved on since pull request {number} was opened.")
            if not git.move_ref(BRANCH + "main", main, head):
                raise StaleParent(_STALE_MESSAGE)
            self._pulls.set_status(number, "merged")

    def set_pull_status(self, number: int, status: Status) -> Pull:
        """Close or reopen a pull request; raises Conflict if it is merged."""
        with self._write_lock:
            if self._pulls.all()[number - 1].status == "merged":
                raise Conflict(f"Pull request {number} is merged.")
            return self._pulls.set_status(number, status)

    def write_first_commit(
        self, changes: Iterable[Change], message: str, author: str, when: datetime
    ) -> None:
        """Write the first commit and create main."""
        with Git(self.folder) as git:
            tree = git.edit_tree(None, self._write_changes(git, changes))
            _add_ref(git, BRANCH + "main", git.write_commit(tree, None, message, author, when))

    def _write_commit(
        self,
        git: Git,
        head: str,
        changes: Iterable[Change],
        message: str,
        author: str,
        when: datetime,
    ) -> str:
        tree = git.edit_tree(git.read_commit(head).tree, self._write_changes(git, changes))
        return git.write_commit(tree, head, message, author, when)

    def _write_changes(self, git: Git, changes: Iterable[Change]) -> list[Edit]:
        return [(check_path(change.path), self._write_blob(git, change)) for change in changes]

    def _write_blob(self, git: Git, change: Change) -> str | None:
        match change:
            case AddFile(content=content):
                # A regular file that parses as a pointer is one, so its content must exist too.
                self._check_pointer(parse_pointer(content))
                return git.write_blob(content)
            case AddLargeFile(path, oid, size):
                pointer = Pointer(oid, self._uploaded_size(path, oid) if size is None else size)
                self._check_pointer(pointer)
                return git.write_blob(pointer.text)
        return None

    def _uploaded_size(self, path: str, oid: str) -> int:
        if not self._blobs.has(oid):
            raise BadRequest(f"The content of {path!r} was never uploaded (sha256 {oid}).")
        return self._blobs.size(oid)

    def _check_pointer(self, pointer: Pointer | None) -> None:
        if pointer and not self._blobs.has(pointer.oid):
            raise BadRequest(f"LFS pointer points to a file that does not exist: {pointer.oid}")
        if pointer and self._blobs.size(pointer.oid) != pointer.size:
            raise BadRequest(f"The LFS file {pointer.oid} does not have {pointer.size} bytes.")


def _resolve(git: Git, revision: str) -> str:
    for name in (BRANCH + revision, TAG + revision, revision):
        if name.startswith("refs/") and (sha := git.ref(name)):
            return sha
    if revision == "HEAD":
        return _resolve(git, "main")
    if len(revision) >= _MIN_SHA_CHARS and (sha := git.expand_sha(revision)):
        return sha
    raise RevisionMissing(f"Invalid rev id: {revision}")


def _check_head(git: Git, ref: str, name: str, parent: str) -> str:
    head = git.ref(ref)
    if head is None:
        raise RevisionMissing(f"Invalid rev id: {name}")
    if not head.startswith(parent):
        raise StaleParent(_STALE_MESSAGE)
    return head


def _add_ref(git: Git, name: str, sha: str) -> None:
    if not git.add_ref(name, sha):
        raise Conflict(f"Reference {name} already exists")
