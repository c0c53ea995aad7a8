"""Which files of a mixture's folder hold its weights: the router's, and an adapter per expert."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.kinds import MOE
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.header import shown
from hubmerge.weights.layout import ADAPTER, Layout, plain_file
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, read_moe_config


def find_mixture(folder: Path) -> Layout:
    """The router, then each expert's adapter, in the order of moe_config.json.

    Raises CheckpointError for everything at once: what is missing or no plain file, folders that
    are links, and experts that the configuration does not name, as their weights would go unread.
    """
    names = [expert.name for expert in read_moe_config(folder).experts]
    raise_together(
        CheckpointError, list(_problems(folder, names)), "Fetch or make the mixture anew."
    )
    return Layout(MOE, (ROUTER, *(f"{EXPERTS}/{name}/{ADAPTER}" for name in names)))


def settings_in(folder: Path) -> tuple[str, ...]:
    """The files that say what the weights of a mixture's folder mean: its own and its experts'."""
    experts = read_moe_config(folder).experts
    return (CONFIG, *(f"{EXPERTS}/{expert.name}/{FILE}" for expert in experts))


def _problems(folder: Path, names: Sequence[str]) -> Iterator[str]:
    yield from _file_problems(folder, ROUTER)
    experts = folder / EXPERTS
    if not _is_folder(experts):
        yield f"{experts} is not a folder of experts."
        return
    for name in names:
        if not _is_folder(experts / name):
            yield f"{experts / name} is not the folder of an expert."
            continue
        for file in (FILE, ADAPTER):
            yield from _file_problems(experts / name, file)
    for entry in sorted(os.listdir(experts)):
        if entry not in names and (experts / entry).is_dir():
            yield f"{experts} holds {shown(entry)!r}, which is no expert of the mixture."


def _file_problems(folder: Path, name: str) -> Iterator[str]:
    try:
        plain_file(folder, name)
    except CheckpointError as error:
        yield error.message


def _is_folder(path: Path) -> bool:
    """A folder and no link to one: a repository could name any folder of ours."""
    return path.is_dir() and not path.is_symlink()
