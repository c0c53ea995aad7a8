"""Where to compute."""

from __future__ import annotations

import torch

from hubmerge.errors import UsageError


def pick_device(asked: str | None) -> torch.device:
    """The device of that name, else the first GPU, else the CPU; raises UsageError."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {asked!r} is not to be had here.", "Write --device cpu, or leave it out."
        ) from error
    return device
