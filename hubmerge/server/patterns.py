"""Which paths git treats specially: those tracked by LFS, and those ignored."""

from __future__ import annotations

from fnmatch import fnmatchcase

from dulwich.ignore import IgnoreFilter

_TRACKED = [
    "*.7z",
    "*.arrow",
    "*.avro",
    "*.bin",
    "*.bz2",
    "*.ckpt",
    "*.feather",
    "*.ftz",
    "*.gz",
    "*.h5",
    "*.joblib",
    "*.lz4",
    "*.mds",
    "*.mlmodel",
    "*.model",
    "*.msgpack",
    "*.npy",
    "*.npz",
    "*.onnx",
    "*.ot",
    "*.parquet",
    "*.pb",
    "*.pickle",
    "*.pkl",
    "*.pt",
    "*.pth",
    "*.rar",
    "*.safetensors",
    "saved_model/**/*",
    "*.tar.*",
    "*.tar",
    "*.tflite",
    "*.tgz",
    "*.wasm",
    "*.xz",
    "*.zip",
    "*.zst",
    "*tfevents*",
]

# The initial commit of every repository, as on the Hub.
GITATTRIBUTES = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in _TRACKED).encode()


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
