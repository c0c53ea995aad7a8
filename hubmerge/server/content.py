"""The changes of a commit; git holds only a pointer for a large file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dulwich.ignore import IgnoreFilter

_LFS_PATTERNS = """*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.feather *.ftz *.gz *.h5 *.joblib *.lz4
    *.mds *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt
    *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst
    *tfevents*"""

# The initial commit of every repository, as on the Hub.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS.split()
).encode()

_MAX_POINTER_BYTES = 200
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?"
)


@dataclass(frozen=True)
class AddFile:
    """Add a regular file with its content."""

    path: str
    content: bytes


@dataclass(frozen=True)
class AddLargeFile:
    """Add a file whose content is in the blob store already; size None is looked up there."""

    path: str
    oid: str
    size: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove a file or a folder."""

    path: str


Change = AddFile | AddLargeFile | Delete


@dataclass(frozen=True)
class Pointer:
    """A large file by its content: sha256 and size in bytes."""

    oid: str
    size: int

    @property
    def text(self) -> bytes:
        """The pointer file that git stores in place of the content."""
        lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\n"
        return f"{lines}size {self.size}\n".encode()


def parse_pointer(blob: bytes) -> Pointer | None:
    """The pointer in a git blob, None if the blob is not a pointer."""
    # Longer blobs are never pointers, so they are not matched.
    match = _POINTER.fullmatch(blob) if len(blob) <= _MAX_POINTER_BYTES else None
    return Pointer(match[1].decode(), int(match[2])) if match else None


def lfs_patterns(gitattributes: bytes) -> list[str]:
    """The patterns that a .gitattributes file tracks by LFS."""
    lines = (line.split() for line in gitattributes.decode(errors="replace").splitlines())
    return [words[0] for words in lines if "filter=lfs" in words[1:]]


def is_lfs_path(path: str, patterns: list[str]) -> bool:
    """Whether a path is stored by LFS; patterns without a slash match the file name only."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path if "/" in p else name, p.replace("**/", "*")) for p in patterns)


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether the text of a .gitignore file ignores a path."""
    return bool(IgnoreFilter(gitignore.encode().splitlines()).is_ignored(path))
