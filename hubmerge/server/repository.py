"""One repository: its settings, its branches and tags, and the commits that change its files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_whole
from hubmerge.server.blobs import Blobs
from hubmerge.server.content import AddFile, AddLarge, Change, Pointer, parse_pointer
from hubmerge.server.git import Edit, Git
from hubmerge.server.http_errors import BadRequest, Conflict, Forbidden, RevisionMissing, Stale
from hubmerge.server.names import RepoId, check_path, check_ref
from hubmerge.server.pulls import PULL, Pull, Pulls, Status
from hubmerge.server.snapshot import Snapshot

BRANCH, TAG = "refs/heads/", "refs/tags/"

_SHORTEST_PARENT = 5
_SHORTEST_SHA = 7
_MOVED_ON = "The branch was updated since you opened this page. Please refresh and try again."


@dataclass(frozen=True)
class Settings:
    """Private: only seen with a token. Gated: seen by all, its files need a token."""

    created: datetime
    private: bool = False
    gated: Literal["auto", "manual", False] = False


class Repository:
    """A repository on disk. Readers need no lock; writers take turns: objects first, ref last."""

    def __init__(self, id: RepoId, folder: Path, blobs: Blobs, turn: threading.Lock) -> None:
        self.id = id
        self.folder = folder
        self._blobs = blobs
        self._turn = turn
        self._settings_file = folder / "hub.json"
        self._pulls = Pulls(folder)

    @property
    def settings(self) -> Settings:
        """Who may see it, and since when it is."""
        kept = json.loads(self._settings_file.read_text())
        return Settings(**{**kept, "created": datetime.fromisoformat(kept["created"])})

    def configure(self, settings: Settings) -> None:
        kept = {**asdict(settings), "created": settings.created.isoformat()}
        write_whole(self._settings_file, json.dumps(kept).encode())

    def at(self, revision: str) -> Snapshot:
        """The commit that a branch, a tag, a full ref or a commit id means."""
        with Git(self.folder) as git:
            return Snapshot(self.folder, self._blobs, _resolve(git, revision))

    def refs(self, prefix: str) -> dict[str, str]:
        """The names of branches or tags (BRANCH or TAG), and their commits."""
        with Git(self.folder) as git:
            return git.refs(prefix)

    def large_files(self) -> dict[str, tuple[str, Pointer]]:
        """The large files of all commits by their sha256: a name that each has, and its size."""
        with Git(self.folder) as git:
            read = ((name, parse_pointer(git.read(oid))) for oid, name in git.named_blobs().items())
            return {pointer.oid: (name, pointer) for name, pointer in read if pointer}

    def create_ref(
        self, prefix: str, name: str, revision: str, message: str = "", author: str = "hub"
    ) -> None:
        """Start a branch, or tag a revision with or without a message; what exists stays put."""
        with Git(self.folder) as git, self._turn:
            sha = _resolve(git, revision)
            ref = prefix + check_ref(name)
            _add_ref(git, ref, git.annotate(sha, name, message, author) if message else sha)

    def delete_ref(self, prefix: str, name: str) -> None:
        """Remove a tag, or a branch other than main; what it named stays."""
        if prefix + name == BRANCH + "main":
            raise Forbidden("The main branch cannot be deleted.")
        with Git(self.folder) as git, self._turn:
            if git.ref(prefix + name) is None:
                raise RevisionMissing(f"Invalid rev id: {name}")
            git.drop_ref(prefix + name)

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
        """Add one commit to a branch, or nothing at all; `parent` must still be its head.

        A pull request that is open is a branch too, by its full name refs/pr/1.
        """
        if parent and len(parent) < _SHORTEST_PARENT:
            raise BadRequest(f"The parent commit {parent!r} is too short: 5 characters or more.")
        with Git(self.folder) as git, self._turn:
            ref = branch if branch.startswith(PULL) else BRANCH + branch
            head = _head(git, ref, branch, parent)
            sha = self._commit(git, head, changes, message, author, when or datetime.now(UTC))
            if not git.move_ref(ref, head, sha):
                raise Stale(_MOVED_ON)
            return sha

    def propose(
        self, changes: Iterable[Change], message: str, *, author: str, parent: str = ""
    ) -> tuple[Pull, str]:
        """Open a pull request that holds one commit, on top of `parent`, else of main."""
        now = datetime.now(UTC)
        with Git(self.folder) as git, self._turn:
            start = _resolve(git, parent or "main")
            sha = self._commit(git, start, changes, message, author, now)
            pull = self._pulls.add(message.partition("\n")[0], author, now)
            _add_ref(git, pull.ref, sha)
            return pull, sha

    def pulls(self) -> list[Pull]:
        """The pull requests by their number."""
        with Git(self.folder) as git:
            return [pull for pull in self._pulls.all() if git.ref(pull.ref)]

    def accept(self, number: int) -> None:
        """Make main what an open pull request holds, if main is still where it started."""
        with Git(self.folder) as git, self._turn:
            pull = self._pulls.all()[number - 1]
            if pull.status != "open":
                raise Conflict(f"Pull request {number} is {pull.status}.")
            head, main = git.ref(pull.ref) or "", git.ref(BRANCH + "main") or ""
            if all(version.id != main for version in git.history(head)):
                raise Conflict(f"main has moved on since pull request {number} was opened.")
            if not git.move_ref(BRANCH + "main", main, head):
                raise Stale(_MOVED_ON)
            self._pulls.mark(number, "merged")

    def mark(self, number: int, status: Status) -> Pull:
        """Close a pull request that is not merged, or open it again."""
        with self._turn:
            if self._pulls.all()[number - 1].status == "merged":
                raise Conflict(f"Pull request {number} is merged.")
            return self._pulls.mark(number, status)

    def begin(self, changes: Iterable[Change], message: str, author: str, when: datetime) -> None:
        """Write the first commit, and the branch main that holds it."""
        with Git(self.folder) as git:
            tree = git.edit(None, self._write(git, changes))
            _add_ref(git, BRANCH + "main", git.commit(tree, None, message, author, when))

    def _commit(
        self,
        git: Git,
        head: str,
        changes: Iterable[Change],
        message: str,
        author: str,
        when: datetime,
    ) -> str:
        tree = git.edit(git.version(head).tree, self._write(git, changes))
        return git.commit(tree, head, message, author, when)

    def _write(self, git: Git, changes: Iterable[Change]) -> list[Edit]:
        return [(check_path(change.path), self._blob(git, change)) for change in changes]

    def _blob(self, git: Git, change: Change) -> str | None:
        match change:
            case AddFile(content=content):
                # A small file that reads as a pointer is one, and must point to something too.
                self._check(parse_pointer(content))
                return git.write(content)
            case AddLarge(path, oid, size):
                pointer = Pointer(oid, self._size(path, oid) if size is None else size)
                self._check(pointer)
                return git.write(pointer.text)
        return None

    def _size(self, path: str, oid: str) -> int:
        if not self._blobs.has(oid):
            raise BadRequest(f"The content of {path!r} was never uploaded (sha256 {oid}).")
        return self._blobs.size(oid)

    def _check(self, pointer: Pointer | None) -> None:
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
    if len(revision) >= _SHORTEST_SHA and (sha := git.expand(revision)):
        return sha
    raise RevisionMissing(f"Invalid rev id: {revision}")


def _head(git: Git, ref: str, name: str, parent: str) -> str:
    head = git.ref(ref)
    if head is None:
        raise RevisionMissing(f"Invalid rev id: {name}")
    if not head.startswith(parent):
        raise Stale(_MOVED_ON)
    return head


def _add_ref(git: Git, name: str, sha: str) -> None:
    if not git.add_ref(name, sha):
        raise Conflict(f"Reference {name} already exists")
