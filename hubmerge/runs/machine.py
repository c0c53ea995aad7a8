"""Device, processes, workers and trackers of a run: options that do not change its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hubmerge.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

_TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Machine:
    """One of `world_size` processes; the main process, rank 0, prints, saves and publishes.

    `workers` is the number of processes that prepare batches. The state is saved every
    `state_every` steps (0: only pushed steps), so a crash costs at most that many. `track` names
    trackers.
    """

    device: str | None = None
    workers: int = 0
    state_every: int = 100
    track: tuple[str, ...] = ()
    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0


def check_machine(machine: Machine) -> None:
    """Raise UsageError for a device or a tracker that is not available."""
    if machine.world_size == 1:  # otherwise `accelerate launch` chooses
        pick_device(machine.device)
    for name in machine.track:
        _check_tracker(name)


def check_can_quantise() -> None:
    """Raise UsageError where bases cannot be quantised to 4 bits: without bitsandbytes or CUDA."""
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            "A base in 4 bits needs bitsandbytes, which is not installed.",
            "pip install bitsandbytes, or leave --load-in out.",
        )
    if not torch.cuda.is_available():
        raise UsageError(
            "A base in 4 bits needs a GPU with CUDA, and this machine has none.",
            "Leave --load-in out.",
        )


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
    """An Accelerator on the device of the machine, or on those it was launched with."""
    from accelerate import Accelerator

    # Precision is passed here, so that no ACCELERATE_* variable changes the result.
    mixed = "bf16" if precision == "bf16" else "no"
    options: dict[str, Any] = {"mixed_precision": mixed, "project_dir": folder}
    if machine.track:
        options["log_with"] = list(machine.track)
    if machine.world_size > 1:
        # Without this, Accelerate does not join processes that have no GPU.
        accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)
    else:
        device = pick_device(machine.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        accelerator = Accelerator(cpu=device.type == "cpu", **options)
    if accelerator.num_processes != machine.world_size:
        raise UsageError(
            f"{machine.world_size} processes were started, and Accelerate joined "
            f"{accelerator.num_processes} of them.",
            "Start hubmerge with `accelerate launch` or `torchrun`.",
        )
    if machine.track:
        config = {name: value for name, value in settings.items() if value is not None}
        accelerator.init_trackers("hubmerge", config=config)
    return accelerator


def pick_device(name: str | None) -> torch.device:
    """The named device; without a name the first GPU or else the CPU; raises UsageError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name!r} is not available.", "Write --device cpu, or leave it out."
        ) from error
    return device
