"""Which files of a folder hold its weights, and which symbolic links may be followed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubmerge.errors import CheckpointError
from hubmerge.kinds import CheckpointKind
from hubmerge.model_files import PICKLE_SUFFIXES
from hubmerge.weights.embedding_modules import SAVE_AGAIN_HINT, module_weight_files, read_stack
from hubmerge.weights.header import MAX_HEADER_BYTES, parse_json_object, safe_name

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SHARD_INDEX_SUFFIX = ".safetensors.index.json"
_BLOB_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Layout:
    """The names of a folder's weight files; `index` and `weight_map` only if they are sharded.

    `weight_map` is tensor name -> file name, from the index. The files of a mixture of experts, and
    of the modules of an embedding model, are in subfolders: their names are paths, with "/".
    """

    kind: CheckpointKind
    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None


def find_layout(folder: Path) -> Layout:
    """Find the weights of a folder, in the same order as open_clip, transformers and peft.

    open_clip_model.safetensors; model.safetensors (which transformers prefers to an index next to
    it); an index of shards; adapter_model.safetensors; any single safetensors file. The modules of
    an embedding model come after its transformer. Raises CheckpointError if there are none, only
    pickles, or several without an index.
    """
    layout = _find_own_layout(folder)
    modules = module_weight_files(folder) if layout.kind == "full" else ()
    return replace(layout, files=(*layout.files, *modules)) if modules else layout


def _find_own_layout(folder: Path) -> Layout:
    """The weights in the folder itself."""
    names = _list_files(folder)
    for single in ("open_clip_model.safetensors", "model.safetensors"):
        if single in names:
            return Layout("full", (single,))
    index = _find_index(folder, names)
    if index is not None:
        return _sharded_layout(folder, index)
    if ADAPTER_WEIGHTS in names:
        return Layout("lora", (ADAPTER_WEIGHTS,))
    return Layout("full", (_find_single_file(folder, names),))


def regular_file(folder: Path, name: str) -> Path:
    """The path of a regular file in the folder itself, not of one that a link points to.

    A symlink is followed only in a Hugging Face cache, from snapshots/<sha>/ to blobs/<hash> of the
    same repository. Raises CheckpointError for any other, which could point to any file of ours.
    """
    path = folder / name
    target = _cache_blob(path) if path.is_symlink() else path
    try:
        mode = os.lstat(target).st_mode
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):  # a pipe or a device would hang us
        raise CheckpointError(f"{path} is not a regular file.")
    return path


def _list_files(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder.") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.") from error


def _find_index(folder: Path, names: Sequence[str]) -> str | None:
    indexes = [name for name in names if name.endswith(SHARD_INDEX_SUFFIX)]
    if len(indexes) > 1 and f"model{SHARD_INDEX_SUFFIX}" not in indexes:
        raise CheckpointError(f"{folder} has several indexes of shards: {', '.join(indexes)}.")
    return f"model{SHARD_INDEX_SUFFIX}" if len(indexes) > 1 else next(iter(indexes), None)


def _find_single_file(folder: Path, names: Sequence[str]) -> str:
    files = [name for name in names if name.endswith(".safetensors")]
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{folder} has {len(files)} safetensors files and no index that lists their tensors.",
            "Keep one, or add model.safetensors.index.json.",
        )
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        raise CheckpointError(
            f"{folder} has its weights only as pickles, which can run code when they are read.",
            f"`hubmerge import {folder} --out DIR` takes the tensors out without running them.",
        )
    stack = read_stack(folder)
    if stack and stack.modules and stack.modules[0].path:
        raise CheckpointError(
            f"{folder} has its transformer in {stack.modules[0].path}, as old versions of "
            "sentence-transformers saved it.",
            SAVE_AGAIN_HINT,
        )
    raise CheckpointError(f"{folder} has no weights: no safetensors file is in it.")


def _sharded_layout(folder: Path, index: str) -> Layout:
    path = regular_file(folder, index)
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is too large to be an index of shards.")
    weight_map = parse_json_object(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map.")
    for tensor, name in weight_map.items():
        _check_shard_name(path, tensor, name)
    kind: CheckpointKind = "lora" if index.startswith("adapter_model") else "full"
    return Layout(kind, tuple(sorted(set(weight_map.values()))), index, weight_map)


def _check_shard_name(index: Path, tensor: str, name: object) -> None:
    is_plain_name = (
        isinstance(name, str) and name.isprintable() and not set(name) & {"/", "\\", ":"}
    )
    if not is_plain_name or not str(name).endswith(".safetensors"):
        raise CheckpointError(
            f"{index}: tensor {safe_name(tensor)!r} is listed in {safe_name(str(name))!r}, "
            "which is not a safetensors file of this folder."
        )


def _cache_blob(path: Path) -> Path:
    folder = path.parent.resolve()
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    target = Path(os.path.normpath(folder / os.readlink(path)))
    blobs = snapshots.parent / "blobs" if snapshots else None
    if target.parent != blobs or not _BLOB_NAME.fullmatch(target.name):
        raise CheckpointError(
            f"{path} is a symbolic link that leaves its folder; it is not followed.",
            "Replace the link with the file itself.",
        )
    return target
