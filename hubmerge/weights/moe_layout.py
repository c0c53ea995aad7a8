"""Which files of a mixture of experts hold its weights: a router, and an adapter per expert."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.kinds import MOE
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.header import safe_name
from hubmerge.weights.layout import ADAPTER_WEIGHTS, Layout, regular_file
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS, read_moe_config


def find_moe_layout(folder: Path) -> Layout:
    """The router, then each expert's adapter, in the order of moe_config.json.

    Raises CheckpointError with all problems at once: files that are missing or not regular, folders
    that are links, and experts that the configuration does not name.
    """
    names = [expert.name for expert in read_moe_config(folder).experts]
    raise_together(
        CheckpointError,
        list(_find_problems(folder, names)),
        "Fetch or make the mixture of experts again.",
    )
    return Layout(
        MOE, (ROUTER_WEIGHTS, *(f"{EXPERTS_FOLDER}/{name}/{ADAPTER_WEIGHTS}" for name in names))
    )


def config_file_names(folder: Path) -> tuple[str, ...]:
    """The configuration files of a mixture of experts: its own and those of its experts."""
    experts = read_moe_config(folder).experts
    return (MOE_CONFIG, *(f"{EXPERTS_FOLDER}/{expert.name}/{ADAPTER_CONFIG}" for expert in experts))


def _find_problems(folder: Path, names: Sequence[str]) -> Iterator[str]:
    yield from _find_file_problems(folder, ROUTER_WEIGHTS)
    experts = folder / EXPERTS_FOLDER
    if not _is_real_folder(experts):
        yield f"{experts} is not a folder of experts."
        return
    for name in names:
        if not _is_real_folder(experts / name):
            yield f"{experts / name} is not a folder of an expert."
            continue
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            yield from _find_file_problems(experts / name, file)
    for entry in sorted(os.listdir(experts)):
        if entry not in names and (experts / entry).is_dir():
            yield f"{experts} holds {safe_name(entry)!r}, which is not in its configuration."


def _find_file_problems(folder: Path, name: str) -> Iterator[str]:
    try:
        regular_file(folder, name)
    except CheckpointError as error:
        yield error.message


def _is_real_folder(path: Path) -> bool:
    """Whether it is a folder and not a link to one, which could point to any folder of ours."""
    return path.is_dir() and not path.is_symlink()
