"""Where to compute, and with what help: what decides how fast a result comes, never what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hubmerge.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

_TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Machine:
    """One process among `world`, of which the first, rank 0, speaks, saves and publishes.

    `workers` prepare batches, `state_every` is how many steps at most a crash can cost (0: back to
    the last pushed step), `track` names trackers.
    """

    device: str | None = None
    workers: int = 0
    state_every: int = 100
    track: tuple[str, ...] = ()
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


def check_machine(machine: Machine) -> None:
    """Raise UsageError for a device or a tracker that is not to be had here."""
    if machine.world == 1:  # else `accelerate launch` decides
        pick_device(machine.device)
    for name in machine.track:
        _check_tracker(name)


def _check_tracker(name: str) -> None:
    if name not in _TRACKERS:
        raise UnknownName("tracker", name, _TRACKERS)
    from accelerate.tracking import get_available_trackers

    if name not in {
        str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()
    }:
        raise UsageError(f"The tracker {name} is not installed.", f"pip install {name}")


def make_accelerator(
    machine: Machine, precision: str, folder: Path, settings: Mapping[str, object]
) -> Accelerator:
    """Accelerate on the device that was asked for, or on those it was launched with."""
    from accelerate import Accelerator

    # Precision is said here, so that no ACCELERATE_* variable changes the bits.
    mixed = "bf16" if precision == "bf16" else "no"
    said: dict[str, Any] = {"mixed_precision": mixed, "project_dir": folder}
    if machine.track:
        said["log_with"] = list(machine.track)
    if machine.world > 1:
        # Without this, Accelerate takes processes that have no GPU for strangers.
        accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **said)
    else:
        device = pick_device(machine.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        accelerator = Accelerator(cpu=device.type == "cpu", **said)
    if accelerator.num_processes != machine.world:
        raise UsageError(
            f"{machine.world} processes were started, and Accelerate joined "
            f"{accelerator.num_processes} of them.",
            "Start hubmerge with `accelerate launch` or `torchrun`.",
        )
    if machine.track:
        told = {name: value for name, value in settings.items() if value is not None}
        accelerator.init_trackers("hubmerge", config=told)
    return accelerator


def pick_device(asked: str | None) -> torch.device:
    """The device of that name, else the first GPU, else the CPU; raises UsageError."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {asked!r} is not to be had here.", "Write --device cpu, or leave it out."
        ) from error
    return device
