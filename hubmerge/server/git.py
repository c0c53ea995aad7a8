"""One bare git repository: refs, commits and blobs. Few other files use dulwich."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from posixpath import join

from dulwich.errors import NotTreeError, RefFormatError
from dulwich.file import FileLocked
from dulwich.object_store import DiskObjectStore, MissingObjectFinder, tree_lookup_path
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tag, Tree
from dulwich.refs import Ref, check_ref_format
from dulwich.repo import Repo

from hubmerge.server.http_errors import Conflict
from hubmerge.server.refs import RefStore
from hubmerge.server.trees import FOLDER_MODE, TreeEditor, read_tree

# A path, and the blob to put there; None removes the path.
Edit = tuple[str, str | None]

_HEX = re.compile(r"[0-9a-f]{4,40}")
_SHA_CHARS = 40


@dataclass(frozen=True)
class TreeEntry:
    """A path in a tree and its git object."""

    path: str
    oid: str
    is_folder: bool


@dataclass(frozen=True)
class GitCommit:
    """A commit: id, tree, first parent, author, message and date."""

    id: str
    tree: str
    parent: str | None
    author: str
    message: str
    date: datetime

    @property
    def title(self) -> str:
        return self.message.split("\n", 1)[0]

    @property
    def body(self) -> str:
        return self.message.partition("\n")[2].strip()


class Git:
    """A bare repository on disk; the caller closes it (`with Git(folder) as git`)."""

    def __init__(self, folder: Path) -> None:
        # Opened at each request, so without dulwich's Repo, which reads the configuration first.
        self._folder = folder
        self._objects = DiskObjectStore(str(folder / "objects"), fsync_object_files=True)
        self._refs = RefStore(folder, partial(_peel_tag, folder))

    def __enter__(self) -> Git:
        return self

    def __exit__(self, *_: object) -> None:
        self._objects.close()

    def refs(self, prefix: str) -> dict[str, str]:
        """The names below a prefix ("refs/heads/") and their commits."""
        return self._refs.commits(prefix)

    def ref(self, name: str) -> str | None:
        """The commit of a full ref name; tag objects are resolved to their commit."""
        return self._refs.commit(name) if check_ref_format(Ref(name.encode())) else None

    def add_ref(self, name: str, sha: str) -> bool:
        """Create a ref; False if it exists already. The caller holds the repository's lock."""
        try:
            return self._refs.add(name, _to_oid(sha))
        except (FileLocked, NotADirectoryError, IsADirectoryError, RefFormatError) as error:
            raise Conflict(f"Reference {name} collides with another one") from error

    def move_ref(self, name: str, old: str, new: str) -> bool:
        """Move a ref if it still points to `old` (compare and swap); False if it does not."""
        try:
            return self._refs.set_if_equals(Ref(name.encode()), _to_oid(old), _to_oid(new))
        except FileLocked:
            return False

    def delete_ref(self, name: str) -> None:
        """Delete a ref; the objects stay."""
        self._refs.remove_if_equals(Ref(name.encode()), None)

    def write_tag(self, sha: str, name: str, message: str, author: str) -> str:
        """Write a tag object with a message, and return its id."""
        tag = Tag()
        tag.tagger, tag.message, tag.name = _identity(author), message.encode(), name.encode()
        tag.object = (Commit, _to_oid(sha))
        tag.tag_time, tag.tag_timezone = int(datetime.now(UTC).timestamp()), 0
        self._objects.add_object(tag)
        return tag.id.decode()

    def expand_sha(self, prefix: str) -> str | None:
        """The commit whose id starts with the prefix, if there is exactly one."""
        if not _HEX.fullmatch(prefix):
            return None
        is_complete = len(prefix) == _SHA_CHARS  # then nothing is searched
        oids = [_to_oid(prefix)] if is_complete else self._objects.iter_prefix(prefix.encode())
        ids = [oid for oid in oids if self._is_commit(oid)]
        return ids[0].decode() if len(ids) == 1 else None

    def has_commit(self, sha: str) -> bool:
        """Whether there is a commit with this full id."""
        return len(sha) == _SHA_CHARS and self.expand_sha(sha) is not None

    def read_commit(self, sha: str) -> GitCommit:
        commit = self._objects[_to_oid(sha)]
        assert isinstance(commit, Commit)
        return GitCommit(
            id=sha,
            tree=commit.tree.decode(),
            parent=commit.parents[0].decode() if commit.parents else None,
            author=commit.author.decode().partition(" <")[0],
            message=commit.message.decode(),
            date=datetime.fromtimestamp(commit.author_time, UTC),
        )

    def history(self, sha: str) -> Iterator[GitCommit]:
        """A commit and its ancestors along first parents, newest first."""
        next_sha: str | None = sha
        while next_sha:
            commit = self.read_commit(next_sha)
            yield commit
            next_sha = commit.parent

    def find(self, tree: str, path: str) -> TreeEntry | None:
        """Look up a path in a tree; the empty path is the tree itself."""
        if path and "" in path.split("/"):
            return None
        try:
            mode, oid = tree_lookup_path(self._objects.__getitem__, _to_oid(tree), path.encode())
        except (KeyError, NotTreeError):
            return None
        return TreeEntry(path, oid.decode(), is_folder=mode == FOLDER_MODE)

    def walk(self, folder: TreeEntry, recursive: bool) -> Iterator[TreeEntry]:
        """List a folder in git's order, parents before their children."""
        for name, mode, oid in read_tree(self._objects, _to_oid(folder.oid)).iteritems():
            entry = TreeEntry(join(folder.path, name.decode()), oid.decode(), mode == FOLDER_MODE)
            yield entry
            if recursive and entry.is_folder:
                yield from self.walk(entry, recursive)

    def named_blobs(self) -> dict[str, str]:
        """Every blob in any tree of the repository -> one of its file names."""
        trees = (self._objects[oid] for oid in self._objects)
        return {
            oid.decode(): name.decode()
            for tree in trees
            if isinstance(tree, Tree)
            for name, mode, oid in tree.iteritems()
            if mode != FOLDER_MODE
        }

    def read_blob(self, oid: str) -> bytes:
        blob = self._objects[_to_oid(oid)]
        assert isinstance(blob, Blob)
        return blob.data

    def write_blob(self, content: bytes) -> str:
        blob = Blob.from_string(content)
        self._objects.add_object(blob)
        return blob.id.decode()

    def edit_tree(self, tree: str | None, edits: Sequence[Edit]) -> str:
        """Write an edited copy of a tree; removals come before additions."""
        root = TreeEditor(self._objects, _to_oid(tree) if tree else None)
        for path in [path for path, blob in edits if blob is None]:
            root.drop(path)
        for path, blob in edits:
            if blob is not None:
                root.put(path, _to_oid(blob))
        return root.write().decode()

    def write_commit(
        self, tree: str, parent: str | None, message: str, author: str, when: datetime
    ) -> str:
        """Write a commit without moving a ref to it."""
        commit = Commit()
        commit.tree, commit.parents = _to_oid(tree), [_to_oid(parent)] if parent else []
        commit.author = commit.committer = _identity(author)
        commit.author_time = commit.commit_time = int(when.timestamp())
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding, commit.message = b"UTF-8", message.encode()
        self._objects.add_object(commit)
        return commit.id.decode()

    def tree_at(self, sha: str) -> str | None:
        """The tree of a commit, or of the commit that a tag leads to; None for other objects."""
        item = self._object(_to_oid(sha))
        while isinstance(item, Tag):
            item = self._object(item.object[1])
        return item.tree.decode() if isinstance(item, Commit) else None

    def is_complete(self, tips: Sequence[str]) -> bool:
        """Whether every object is here that `tips` reach and no ref does."""
        known = [_to_oid(sha) for sha in self.refs("refs/").values()]
        try:
            new = MissingObjectFinder(self._objects, known, map(_to_oid, tips))
            return all(oid in self._objects for oid, _ in new)
        except KeyError:
            return False

    def _is_commit(self, oid: ObjectID) -> bool:
        return isinstance(self._object(oid), Commit)

    def _object(self, oid: ObjectID) -> ShaFile | None:
        try:
            return self._objects[oid]
        except KeyError:
            return None


def init_git(folder: Path) -> None:
    """Create an empty bare repository in a new folder, without reflogs."""
    with Repo.init_bare(str(folder), mkdir=True, default_branch=b"main") as repo:
        config = repo.get_config()
        config.set((b"core",), b"logAllRefUpdates", False)
        config.write_to_path()


@lru_cache(maxsize=16384)  # a list of refs reads every tag, and an object never changes
def _peel_tag(folder: Path, oid: ObjectID) -> str | None:
    with Git(folder) as git:
        target = git._object(oid)
        while isinstance(target, Tag):
            oid = target.object[1]
            target = git._object(oid)
        return oid.decode() if isinstance(target, Commit) else None


def _to_oid(sha: str) -> ObjectID:
    return ObjectID(sha.encode())


def _identity(author: str) -> bytes:
    return f"{author} <{author}@users.noreply.hubmerge.local>".encode()
