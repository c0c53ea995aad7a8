"""The unit of work of a recipe: what decides it, and which other units it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Result = dict[str, Any]  # plain JSON values


@dataclass(frozen=True, eq=False)
class Unit:
    """One train, merge, mixture ... of a recipe.

    `params` and the units it `needs`, by role, decide its result; so does the number of threads
    (`cpus`), which changes bits. `about` is how people know it, and decides nothing, nor does
    `steps`, the training steps it is worth, by which time left is estimated. `gpus` may be a part.
    """

    kind: str
    params: Mapping[str, Any]
    about: str
    needs: Mapping[str, Unit] = field(default_factory=dict)
    cpus: int = 1
    gpus: float = 0.0
    steps: int = 0

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that any change of what decides it changes."""
        needs = {role: unit.key for role, unit in self.needs.items()}
        return key_of({"kind": self.kind, "params": self.params, "needs": needs, "cpus": self.cpus})


def key_of(said: Mapping[str, Any]) -> str:
    """The key of what is said of a unit, where its needs are keys."""
    deciding = [said["kind"], said["params"], said["needs"], said["cpus"]]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shop:
    """Where units are made: which Hub, whose repositories, a folder for scratch, a device.

    `recipes` is the folder of all recipes, where bases of theirs may lie. `code` is the version of
    the measuring code: what other code trained is in other repositories. Plain values, as it goes
    to other processes.
    """

    hub: str | None
    owner: str
    folder: Path
    recipes: Path = Path("recipes")
    code: str = ""
    device: str | None = None


def with_needs(units: Iterable[Unit]) -> list[Unit]:
    """These units and all that they need, each once, whatever is needed first."""
    found: dict[str, Unit] = {}

    def add(unit: Unit) -> None:
        if unit.key not in found:
            for needed in unit.needs.values():
                add(needed)
            found[unit.key] = unit

    for unit in units:
        add(unit)
    return list(found.values())
