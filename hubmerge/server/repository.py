"""One repository: its settings, its branches and tags, and the commits that change its files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_atomic
from hubmerge.server.blobs import BlobStore
from hubmerge.server.commit_writer import CommitWriter
from hubmerge.server.content import Change, Pointer, parse_pointer
from hubmerge.server.discussion_store import PULL, Discussion, Discussions, Status
from hubmerge.server.git import Git, GitCommit
from hubmerge.server.http_errors import (
    BadRequest,
    Conflict,
    Forbidden,
    RevisionMissing,
    StaleParent,
)
from hubmerge.server.names import RepoId, check_ref
from hubmerge.server.pushes import BRANCH, TAG, HasContent, RefUpdate, apply_updates, find_problem
from hubmerge.server.quarantine import Quarantine
from hubmerge.server.snapshot import Snapshot

_MIN_PARENT_CHARS = 5
_MIN_SHA_CHARS = 7
_STALE_MESSAGE = "The branch was updated since you opened this page. Please refresh and try again."


@dataclass(frozen=True)
class RepoSettings:
    """Private: visible only to its owner. Gated: visible, but only its owner may read its files."""

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
        self._writer = CommitWriter(blobs)
        self._write_lock = write_lock
        self._settings_file = folder / "hub.json"
        self._discussions = Discussions(folder)

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
            if prefix == TAG and git.ref(BRANCH + name):
                # A revision of that name would mean the branch, which moves. The public Hub allows
                # the opposite, a new branch beside a tag.
                raise Conflict(f"Reference {BRANCH + name} already exists: use another name")
            _add_ref(git, ref, git.write_tag(sha, name, message, author) if message else sha)

    def delete_ref(self, prefix: str, name: str) -> None:
        """Delete a tag, or a branch other than main; its commits stay."""
        if prefix + name == BRANCH + "main":
            raise Forbidden("Cannot delete refs/heads/main: every repository has it.")
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
            sha = self._writer.write(git, head, changes, message, author, when or datetime.now(UTC))
            if not git.move_ref(ref, head, sha):
                raise StaleParent(_STALE_MESSAGE)
            return sha

    def squash(self, branch: str, message: str, author: str) -> str:
        """Replace the history of a branch by one commit; tags keep their commits."""
        with Git(self.folder) as git, self._write_lock:
            ref = branch if branch.startswith(PULL) else BRANCH + branch
            head = _check_head(git, ref, branch, "")
            tree = git.read_commit(head).tree
            sha = git.write_commit(tree, None, message, author, datetime.now(UTC))
            if not git.move_ref(ref, head, sha):
                raise StaleParent(_STALE_MESSAGE)
            return sha

    def open_pull(
        self, changes: Iterable[Change], message: str, *, author: str, parent: str = ""
    ) -> tuple[Discussion, str]:
        """Open a pull request with one commit on top of `parent`, by default of main."""
        now = datetime.now(UTC)
        title, _, description = message.partition("\n\n")
        with Git(self.folder) as git, self._write_lock:
            start = _resolve(git, parent or "main")
            sha = self._writer.write(git, start, changes, message, author, now)
            pull = Discussion(0, title, author, now, base=start)
            pull = self._discussions.add(pull.with_comment(author, description))
            _add_ref(git, pull.ref, sha)
            return pull, sha

    def open_discussion(
        self, title: str, description: str, author: str, is_pull_request: bool
    ) -> Discussion:
        """Open a discussion, or a draft of a pull request whose ref is at main."""
        now = datetime.now(UTC)
        with Git(self.folder) as git, self._write_lock:
            main = _resolve(git, "main")
            status: Status = "draft" if is_pull_request else "open"
            item = Discussion(0, title, author, now, status, is_pull_request, main)
            item = self._discussions.add(item.with_comment(author, description))
            if is_pull_request:
                _add_ref(git, item.ref, main)
            return item

    def discussions(self) -> list[Discussion]:
        """The discussions and pull requests by number."""
        with Git(self.folder) as git:
            return [
                item
                for item in self._discussions.all()
                if not item.is_pull_request or git.ref(item.ref)
            ]

    def change_discussion(
        self, number: int, change: Callable[[Discussion], Discussion]
    ) -> Discussion:
        """Change a discussion; the function may raise an HttpError, then nothing changes."""
        with self._write_lock:
            return self._discussions.change(number, change)

    def pull_commits(self, pull: Discussion) -> list[GitCommit]:
        """The commits of a pull request, oldest first; the newest one if its base is unknown."""
        with Git(self.folder) as git:
            history = git.history(_resolve(git, pull.ref))
            if not pull.base:
                return [next(history)]
            return [*takewhile(lambda commit: commit.id != pull.base, history)][::-1]

    def merge_pull(self, number: int, author: str) -> None:
        """Merge an open pull request by fast-forward; raises Conflict if main has moved on."""
        with Git(self.folder) as git, self._write_lock:
            pull = self._discussions.all()[number - 1]
            if not pull.is_pull_request or not pull.is_open:
                kind = "Pull request" if pull.is_pull_request else "Discussion"
                raise Conflict(f"{kind} {number} is {pull.status}.")
            head, main = git.ref(pull.ref) or "", git.ref(BRANCH + "main") or ""
            if all(commit.id != main for commit in git.history(head)):
                raise Conflict(f"main has moved on since pull request {number} was opened.")
            if not git.move_ref(BRANCH + "main", main, head):
                raise StaleParent(_STALE_MESSAGE)
            merged = replace(pull, status="merged")
            merged = merged.with_event("status-change", author, status="merged")
            self._discussions.change(number, lambda _: merged)

    def receive_pack(
        self,
        read: Callable[[int], bytes],
        read_some: Callable[[int], bytes],
        has_content: HasContent,
    ) -> str:
        """Take the objects of a push; returns why all are refused, empty if they are here now."""
        with Quarantine(self.folder, self._blobs.spool) as quarantine:
            quarantine.receive(read, read_some)
            problem = find_problem(quarantine.objects(), has_content)
            if not problem:
                quarantine.release()
            return problem

    def update_refs(self, updates: Sequence[RefUpdate], is_mirror: bool = False) -> list[str]:
        """Do what a push asks for; returns why each update is refused, empty if it was done."""
        with Git(self.folder) as git, self._write_lock:
            return apply_updates(git, updates, is_mirror)

    def write_first_commit(
        self, changes: Iterable[Change], message: str, author: str, when: datetime
    ) -> None:
        """Write the first commit and create main."""
        with Git(self.folder) as git:
            sha = self._writer.write(git, None, changes, message, author, when)
            _add_ref(git, BRANCH + "main", sha)


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
