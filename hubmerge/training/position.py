"""A position of training on disk: one safetensors file, replaced atomically by a rename."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hubmerge.durable import flush_to_disk, fsync_folder
from hubmerge.errors import CheckpointError
from hubmerge.training_curve import ValidationPoint
from hubmerge.typed_json import validate_json

STATE_FILE = "state.safetensors"
_SCRATCH_FOLDER = ".state"  # safetensors writes a temporary file of its own next to its target


@dataclasses.dataclass(frozen=True)
class Position:
    """A point from which training can be resumed: updates made, the curve, and `Fit.state()`.

    `losses` are those since the last point of the curve; `first_loss` is the loss of step 1.
    """

    step: int
    curve: tuple[ValidationPoint, ...]
    losses: tuple[float, ...]
    first_loss: float | None
    state: Mapping[str, Tensor] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class _PositionHeader:
    """The metadata of the file; `line` is the last step of the training that it belongs to.

    With `anneal: independent` a run trains once for each pushed step, so there are several.
    """

    run: str
    line: int
    step: int
    curve: tuple[ValidationPoint, ...]
    losses: tuple[float, ...]
    first: float | None


def write_position(folder: Path, run: str, line: int, position: Position) -> None:
    """Replace the position of a run in its folder; raises CheckpointError if writing fails."""
    header = _PositionHeader(
        run, line, position.step, position.curve, position.losses, position.first_loss
    )
    scratch = folder / _SCRATCH_FOLDER / STATE_FILE
    try:
        scratch.parent.mkdir(exist_ok=True)
        text = json.dumps(dataclasses.asdict(header), sort_keys=True)
        save_file(dict(position.state), scratch, metadata={"hubmerge": text})
        with scratch.open("rb") as file:
            flush_to_disk(file)
        os.replace(scratch, folder / STATE_FILE)
        fsync_folder(folder)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{scratch} could not be written: {error}",
            "Free disk space, then run the same command again.",
        ) from error


def read_position(folder: Path, run: str) -> tuple[int, Position] | None:
    """The `line` and the position that a run can resume from; None if this run has none.

    Raises CheckpointError if the file is damaged.
    """
    if not (folder / STATE_FILE).is_file():
        return None
    try:
        with safe_open(folder / STATE_FILE, framework="pt") as file:
            text = (file.metadata() or {}).get("hubmerge", "")
            header = validate_json(_PositionHeader, text, strict=False)
            if header.run != run or not file.keys():
                return None
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / STATE_FILE} is not a training state written by hubmerge.",
            "Start over with --no-resume. Saved steps are kept.",
        ) from error
    return header.line, Position(header.step, header.curve, header.losses, header.first, state)


def remove_position(folder: Path) -> None:
    """Remove the position of a finished run, and temporary files of a killed process."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / _SCRATCH_FOLDER, ignore_errors=True)
