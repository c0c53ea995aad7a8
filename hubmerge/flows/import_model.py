"""hubmerge import: the tensors of pickled weights as safetensors, without running the pickle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hubmerge
from hubmerge.durable import hash_file
from hubmerge.errors import NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch_pickles, find_converted, list_files
from hubmerge.hub.resolve import resolve
from hubmerge.model_files import PICKLE_SUFFIXES
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, check_inner_path
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.atomic_folder import atomic_folder, check_target
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.embedding_modules import module_weight_files
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.layout import regular_file
from hubmerge.weights.side_files import copy_side_files
from hubmerge.weights.state_dict import StateDict, find_state_dict, write_state_dicts
from hubmerge.weights.torch_file import open_torch_file

IMPORT_JSON, _CARD = "import.json", "README.md"
# The names of weights, in the order in which libraries look for them, and what they become.
_WEIGHTS = {
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
_SHARD = re.compile(r"pytorch_model-(\d{5}-of-\d{5})\.bin")
# What training leaves beside the weights.
_OTHER_PICKLES = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|.*optim_states.*)\..+"
)


@dataclass(frozen=True)
class ImportRequest:
    """A file, folder or repository with pickled weights; `file` and `key` choose within it."""

    source: ModelRef | Path
    out: Path
    file: str | None = None
    key: str | None = None
    replace: bool = False


@dataclass(frozen=True)
class ImportedModel:
    """The new folder, the SHA-256 of each pickle by its name, and what was left out."""

    folder: Path
    files: Mapping[str, str]
    tensors: int
    notes: tuple[str, ...] = field(default=())


def import_model(hub: Hub, request: ImportRequest, progress: Progress) -> ImportedModel:
    """Write the tensors of pickled weights, with the other files of the model, to a new folder.

    Raises UsageError if it is not clear which file or value is meant, NotOnHub, and CheckpointError
    for a pickle of anything but plain data and tensors. Nothing is written then.
    """
    check_target(request.out, request.replace)
    folder, names, origin, notes = _find_pickles(hub, request)
    dicts: dict[str, StateDict] = {}
    for done, name in enumerate(names):
        progress(f"reading {name}", done, len(names))
        file = open_torch_file(regular_file(folder, name))
        dicts[_target_name(name)] = find_state_dict(file, request.key)
    for item in dicts.values():
        if item.left_out:
            left_out = summarize_names(item.left_out, "value")
            notes.append(f"Left out of {item.file.path.name}: {left_out}.")
    with atomic_folder(request.out, request.replace) as out:
        write_state_dicts(dicts, out)
        if not isinstance(request.source, Path) or request.source.is_dir():
            _copy_other_files(folder, out)
        digests = {name: hash_file(folder / name) for name in names}
        record = {"source": origin, "files": digests, "hubmerge": hubmerge.__version__}
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        (out / IMPORT_JSON).write_text(text, encoding="utf-8")
    count = len(open_checkpoint(request.out).index)
    return ImportedModel(request.out, digests, count, tuple(notes))


def _find_pickles(hub: Hub, request: ImportRequest) -> tuple[Path, Sequence[str], str, list[str]]:
    """The folder of the pickles, their names in it, where they come from, and notes."""
    if isinstance(request.source, Path):
        if request.source.is_file():
            path = request.source.resolve()
            return path.parent, [path.name], request.source.name, []
        names = [path.name for path in request.source.iterdir() if path.is_file()]
        chosen = _choose(names, request.file, str(request.source))
        return request.source, chosen, request.source.name, []
    revision = resolve(hub, request.source)
    inner = f"{revision.ref.subfolder}/" if revision.ref.subfolder else ""
    listed = [path.removeprefix(inner) for path in list_files(hub, revision)]
    chosen = _choose(
        [path for path in listed if "/" not in path or path == request.file],
        request.file,
        revision.label,
    )
    notes = []
    if ref := find_converted(hub, str(revision.ref.repo_id)):
        notes.append(
            f"{revision.ref.repo_id}@{ref} has the weights as safetensors, by the Hub's converter: "
            "it can be named without an import."
        )
    folder = fetch_pickles(hub, revision, [f"{inner}{name}" for name in chosen])
    return folder, chosen, revision.label, notes


def _choose(names: Sequence[str], file: str | None, where: str) -> list[str]:
    """The pickles that hold the weights; UsageError unless this is clear."""
    if file is not None:
        if check_inner_path(file) not in names:
            raise UsageError(f"{where} has no file {safe_name(file)}.", "Name another with --file.")
        return [file]
    for name in _WEIGHTS:
        if name in names:
            return [name]
    if shards := sorted(name for name in names if _SHARD.fullmatch(name)):
        total = int(shards[0].removesuffix(".bin").rpartition("-")[2])
        if len(shards) != total:
            raise NotOnHub(f"{where} has {len(shards)} of {total} shards of its weights.")
        return shards
    others = [
        name
        for name in names
        if name.endswith(PICKLE_SUFFIXES) and not _OTHER_PICKLES.fullmatch(name)
    ]
    if len(others) == 1:
        return others
    if others:
        raise UsageError(
            f"{where} has {summarize_names(others, 'pickle')}.", "Choose one with --file."
        )
    raise NotOnHub(f"{where} has no pickled weights.", "Models in safetensors need no import.")


def _target_name(name: str) -> str:
    if match := _SHARD.fullmatch(name):
        return f"model-{match[1]}.safetensors"
    return _WEIGHTS.get(name, "model.safetensors")


def _copy_other_files(folder: Path, out: Path) -> None:
    copy_side_files(folder, out)
    for name in module_weight_files(folder):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(regular_file(folder, name), out / name)
    for name in (ADAPTER_CONFIG, _CARD):
        if (folder / name).exists():
            shutil.copyfile(regular_file(folder, name), out / name)
