"""A position on disk: one safetensors file, replaced in one rename, so that it is always whole."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hubmerge.durable import fsync_folder, settle
from hubmerge.errors import CheckpointError
from hubmerge.manifest import Point

NAME = "state.safetensors"
_SCRATCH = ".state"  # safetensors writes beside its file too, under a name of its own


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a line of training stands: updates made, its curve, and what `Fit.state` gave.

    `losses` are those since the last point of the curve, `first` is the first of all.
    """

    step: int
    curve: tuple[Point, ...]
    losses: tuple[float, ...]
    first: float | None
    state: Mapping[str, Tensor] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class _Said:
    """What the file says beside its tensors; `line` is the last step of the line it belongs to."""

    run: str
    line: int
    step: int
    curve: tuple[Point, ...]
    losses: tuple[float, ...]
    first: float | None


def write_position(folder: Path, run: str, line: int, position: Position) -> None:
    """Replace the position of a run in its folder.

    Raises CheckpointError for a disk that refuses.
    """
    said = _Said(run, line, position.step, position.curve, position.losses, position.first)
    beside = folder / _SCRATCH / NAME
    try:
        beside.parent.mkdir(exist_ok=True)
        text = json.dumps(dataclasses.asdict(said), sort_keys=True)
        save_file(dict(position.state), beside, metadata={"hubmerge": text})
        with beside.open("rb") as file:
            settle(file)
        os.replace(beside, folder / NAME)
        fsync_folder(folder)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{beside} could not be written: {error}", "Make room, then run the same command again."
        ) from error


def read_position(folder: Path, run: str) -> tuple[int, Position] | None:
    """The line and the position that a run can go on from; None if there is none, or another's.

    Raises CheckpointError for a file that is damaged.
    """
    if not (folder / NAME).is_file():
        return None
    try:
        with safe_open(folder / NAME, framework="pt") as file:
            text = (file.metadata() or {}).get("hubmerge", "")
            said = TypeAdapter(_Said).validate_json(text)
            if said.run != run or not file.keys():
                return None
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / NAME} is no state that hubmerge wrote.",
            "Start over with --no-resume; the steps that were saved stay.",
        ) from error
    return said.line, Position(said.step, said.curve, said.losses, said.first, state)


def drop_position(folder: Path) -> None:
    """Remove the position of a run that is done, and what a killed process left of one."""
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
