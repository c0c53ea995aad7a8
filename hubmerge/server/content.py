"""What goes into a commit: changes of paths; large files leave only a pointer in git."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dulwich.ignore import IgnoreFilter

_LARGE = """*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.feather *.ftz *.gz *.h5 *.joblib *.lz4 *.mds
    *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth
    *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst
    *tfevents*"""

# The initial commit of every repository, as on the Hub.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE.split()
).encode()

_LONGEST_POINTER = 200
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?"
)


@dataclass(frozen=True)
class AddFile:
    """Put a small file, content and all."""

    path: str
    content: bytes


@dataclass(frozen=True)
class AddLarge:
    """Put a file whose content is in the blob store already; an unknown size is looked up."""

    path: str
    oid: str
    size: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove a file or a folder."""

    path: str


Change = AddFile | AddLarge | Delete


@dataclass(frozen=True)
class Pointer:
    """A large file by its content: sha256 and size in bytes."""

    oid: str
    size: int

    @property
    def text(self) -> bytes:
        """The few lines that stand in git for the content."""
        lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\n"
        return f"{lines}size {self.size}\n".encode()


def parse_pointer(blob: bytes) -> Pointer | None:
    """Read a git blob as a pointer, if it is one."""
    # Longer texts are never pointers, so a large file is not searched for one.
    found = _POINTER.fullmatch(blob) if len(blob) <= _LONGEST_POINTER else None
    return Pointer(found[1].decode(), int(found[2])) if found else None


def lfs_patterns(gitattributes: bytes) -> list[str]:
    """The patterns that a .gitattributes file tracks by LFS."""
    lines = (line.split() for line in gitattributes.decode(errors="replace").splitlines())
    return [words[0] for words in lines if "filter=lfs" in words[1:]]


def is_tracked(path: str, patterns: list[str]) -> bool:
    """Whether a path goes by LFS: patterns without a slash look at the file name alone."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path if "/" in p else name, p.replace("**/", "*")) for p in patterns)


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore text leaves a path out."""
    return bool(IgnoreFilter(gitignore.encode().splitlines()).is_ignored(path))
