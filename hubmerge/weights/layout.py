"""Which files of a folder hold its weights, and which paths may be followed to reach them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import CheckpointError
from hubmerge.kinds import CheckpointKind
from hubmerge.weights.header import HEADER_CAP, load_object, shown

ADAPTER = "adapter_model.safetensors"
_INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TO_SAFETENSORS = (
    "Convert it to safetensors first: save_pretrained writes it, and so does "
    "https://huggingface.co/spaces/safetensors/convert for a repository you trust."
)


@dataclass(frozen=True)
class Layout:
    """The weight files of a folder by name; `index` and `weight_map` only where they are sharded.

    `weight_map` is tensor name -> file name, as the index says. A mixture's files lie in folders of
    the folder: their names are paths, with "/".
    """

    kind: CheckpointKind
    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None


def find_layout(folder: Path) -> Layout:
    """Find the weights of a folder, in the order in which the ecosystem's own loaders look.

    open_clip_model.safetensors; model.safetensors (which transformers prefers to an index beside
    it); an index of shards; adapter_model.safetensors; any single safetensors file. Raises
    CheckpointError where there are none, only pickles, or several and no word on which.
    """
    names = _names(folder)
    for single in ("open_clip_model.safetensors", "model.safetensors"):
        if single in names:
            return Layout("full", (single,))
    index = _one_index(folder, names)
    if index is not None:
        return _sharded(folder, index)
    if ADAPTER in names:
        return Layout("lora", (ADAPTER,))
    return Layout("full", (_one_file(folder, names),))


def plain_file(folder: Path, name: str) -> Path:
    """The path of a regular file that lies in the folder itself, never of one it merely points to.

    A symlink is followed only in a Hugging Face cache, from snapshots/<sha>/ to blobs/<hash> of the
    same repository. Raises CheckpointError for any other: a repository could name any file of ours.
    """
    path = folder / name
    target = _cached_blob(path) if path.is_symlink() else path
    try:
        mode = os.lstat(target).st_mode
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):  # a pipe or a device would hang us
        raise CheckpointError(f"{path} is not a regular file.")
    return path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder.") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.") from error


def _one_index(folder: Path, names: Sequence[str]) -> str | None:
    found = [name for name in names if name.endswith(_INDEX)]
    if len(found) > 1 and f"model{_INDEX}" not in found:
        raise CheckpointError(f"{folder} has several indexes of shards: {', '.join(found)}.")
    return f"model{_INDEX}" if len(found) > 1 else next(iter(found), None)


def _one_file(folder: Path, names: Sequence[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} safetensors files and no index that says what they are.",
            "Keep one, or add model.safetensors.index.json.",
        )
    if any(name.endswith(PICKLES) for name in names):
        raise CheckpointError(
            f"{folder} has its weights only as pickles, which can run code when they are read.",
            _TO_SAFETENSORS,
        )
    raise CheckpointError(f"{folder} has no weights: no safetensors file is in it.")


def _sharded(folder: Path, index: str) -> Layout:
    path = plain_file(folder, index)
    if path.stat().st_size > HEADER_CAP:
        raise CheckpointError(f"{path} is too large to be an index of shards.")
    weight_map = load_object(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map.")
    for tensor, name in weight_map.items():
        _check_shard(path, tensor, name)
    kind: CheckpointKind = "lora" if index.startswith("adapter_model") else "full"
    return Layout(kind, tuple(sorted(set(weight_map.values()))), index, weight_map)


def _check_shard(index: Path, tensor: str, name: object) -> None:
    inside = isinstance(name, str) and name.isprintable() and not set(name) & {"/", "\\", ":"}
    if not inside or not str(name).endswith(".safetensors"):
        raise CheckpointError(
            f"{index}: tensor {shown(tensor)!r} is said to be in {shown(str(name))!r}, "
            "which is not a safetensors file of this folder."
        )


def _cached_blob(path: Path) -> Path:
    real = path.parent.resolve()
    snapshots = next((up for up in real.parents if up.name == "snapshots"), None)
    target = Path(os.path.normpath(real / os.readlink(path)))
    blobs = snapshots.parent / "blobs" if snapshots else None
    if target.parent != blobs or not _BLOB.fullmatch(target.name):
        raise CheckpointError(
            f"{path} is a symbolic link that leaves its folder; it is not followed.",
            "Replace the link with the file itself.",
        )
    return target
