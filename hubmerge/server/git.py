"""One bare git repository: refs, commits and blobs. With `trees`, the only user of dulwich."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from posixpath import join

from dulwich.errors import NotTreeError, RefFormatError
from dulwich.file import FileLocked
from dulwich.object_store import tree_lookup_path
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.refs import Ref, check_ref_format
from dulwich.repo import Repo

from hubmerge.server.http_errors import Conflict
from hubmerge.server.trees import FOLDER, Folder, read_tree

# A path, and the blob to put there; None drops the path.
Edit = tuple[str, str | None]

_HEX = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True)
class Entry:
    """A path in a tree and the git object under it."""

    path: str
    oid: str
    is_folder: bool


@dataclass(frozen=True)
class Version:
    """A commit: its id, its tree, its first parent and who said what when."""

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
    """A bare repository on disk; whoever opens it closes it (`with Git(folder) as git`)."""

    def __init__(self, folder: Path) -> None:
        self._repo = Repo(str(folder), bare=True)
        self._objects = self._repo.object_store

    def __enter__(self) -> Git:
        return self

    def __exit__(self, *_: object) -> None:
        self._repo.close()

    def refs(self, prefix: str) -> dict[str, str]:
        """Names below a prefix ("refs/heads/") and the commits they mean."""
        names = self._repo.refs.subkeys(Ref(prefix.encode()))
        found = {name.decode(): self.ref(prefix + name.decode()) for name in sorted(names)}
        return {name: sha for name, sha in found.items() if sha}

    def ref(self, name: str) -> str | None:
        """The commit that a full ref name means; tag objects are looked through."""
        if not check_ref_format(Ref(name.encode())):
            return None
        oid = self._repo.refs.read_loose_ref(Ref(name.encode()))
        return self._peel(ObjectID(oid)) if oid else None

    def add_ref(self, name: str, sha: str) -> bool:
        """Create a ref, or say that it exists."""
        try:
            return self._repo.refs.add_if_new(Ref(name.encode()), ObjectID(sha.encode()))
        except (FileLocked, NotADirectoryError, IsADirectoryError, RefFormatError) as error:
            raise Conflict(f"Reference {name} collides with another one") from error

    def move_ref(self, name: str, old: str, new: str) -> bool:
        """Move a ref if it still is where it was: compare and swap."""
        refs = self._repo.refs
        try:
            return refs.set_if_equals(Ref(name.encode()), ObjectID(old.encode()), _oid(new))
        except FileLocked:
            return False

    def drop_ref(self, name: str) -> None:
        """Remove a ref; the objects stay."""
        self._repo.refs.remove_if_equals(Ref(name.encode()), None)

    def annotate(self, sha: str, name: str, message: str, author: str) -> str:
        """Write a tag object that carries a message, and return its id."""
        tag = Tag()
        tag.tagger, tag.message, tag.name = _mail(author), message.encode(), name.encode()
        tag.object = (Commit, _oid(sha))
        tag.tag_time, tag.tag_timezone = int(datetime.now(UTC).timestamp()), 0
        self._objects.add_object(tag)
        return tag.id.decode()

    def expand(self, prefix: str) -> str | None:
        """The only commit whose id starts so, if there is exactly one."""
        if not _HEX.fullmatch(prefix):
            return None
        found = [oid for oid in self._objects.iter_prefix(prefix.encode()) if self._is_commit(oid)]
        return found[0].decode() if len(found) == 1 else None

    def version(self, sha: str) -> Version:
        commit = self._repo[_oid(sha)]
        assert isinstance(commit, Commit)
        return Version(
            id=sha,
            tree=commit.tree.decode(),
            parent=commit.parents[0].decode() if commit.parents else None,
            author=commit.author.decode().partition(" <")[0],
            message=commit.message.decode(),
            date=datetime.fromtimestamp(commit.author_time, UTC),
        )

    def history(self, sha: str) -> Iterator[Version]:
        """A commit and its forebears, youngest first."""
        next_one: str | None = sha
        while next_one:
            version = self.version(next_one)
            yield version
            next_one = version.parent

    def find(self, tree: str, path: str) -> Entry | None:
        """Look a path up in a tree; the empty path is the tree itself."""
        if path and "" in path.split("/"):
            return None
        try:
            mode, oid = tree_lookup_path(self._objects.__getitem__, _oid(tree), path.encode())
        except (KeyError, NotTreeError):
            return None
        return Entry(path, oid.decode(), is_folder=mode == FOLDER)

    def walk(self, folder: Entry, recursive: bool) -> Iterator[Entry]:
        """List a folder in git's order, parents before their children."""
        for name, mode, oid in read_tree(self._objects, _oid(folder.oid)).iteritems():
            entry = Entry(join(folder.path, name.decode()), oid.decode(), mode == FOLDER)
            yield entry
            if recursive and entry.is_folder:
                yield from self.walk(entry, recursive)

    def named_blobs(self) -> dict[str, str]:
        """Every blob of every tree that was ever written -> one of the names it has there."""
        trees = (self._objects[oid] for oid in self._objects)
        return {
            oid.decode(): name.decode()
            for tree in trees
            if isinstance(tree, Tree)
            for name, mode, oid in tree.iteritems()
            if mode != FOLDER
        }

    def read(self, oid: str) -> bytes:
        blob = self._objects[_oid(oid)]
        assert isinstance(blob, Blob)
        return blob.data

    def write(self, content: bytes) -> str:
        blob = Blob.from_string(content)
        self._objects.add_object(blob)
        return blob.id.decode()

    def edit(self, tree: str | None, edits: Sequence[Edit]) -> str:
        """Write a tree anew: first all paths without a blob are dropped, then the others put."""
        root = Folder(self._objects, _oid(tree) if tree else None)
        for path in [path for path, blob in edits if blob is None]:
            root.drop(path)
        for path, blob in edits:
            if blob is not None:
                root.put(path, _oid(blob))
        return root.write().decode()

    def commit(
        self, tree: str, parent: str | None, message: str, author: str, when: datetime
    ) -> str:
        """Write a commit that no ref points to yet."""
        commit = Commit()
        commit.tree, commit.parents = _oid(tree), [_oid(parent)] if parent else []
        commit.author = commit.committer = _mail(author)
        commit.author_time = commit.commit_time = int(when.timestamp())
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding, commit.message = b"UTF-8", message.encode()
        self._objects.add_object(commit)
        return commit.id.decode()

    def _peel(self, oid: ObjectID) -> str | None:
        found = self._repo[oid] if oid in self._objects else None
        while isinstance(found, Tag):
            found = self._repo[found.object[1]]
        return found.id.decode() if isinstance(found, Commit) else None

    def _is_commit(self, oid: ObjectID) -> bool:
        return isinstance(self._objects[oid], Commit)


def create_git(folder: Path) -> None:
    """Make an empty bare repository in a new folder, durable and without reflogs."""
    with Repo.init_bare(str(folder), mkdir=True, default_branch=b"main") as repo:
        config = repo.get_config()
        config.set((b"core",), b"fsyncObjectFiles", True)
        config.set((b"core",), b"logAllRefUpdates", False)
        config.write_to_path()


def _oid(sha: str) -> ObjectID:
    return ObjectID(sha.encode())


def _mail(author: str) -> bytes:
    return f"{author} <{author}@users.noreply.hubmerge.local>".encode()
