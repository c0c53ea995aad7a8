"""The unit of work of a recipe: its parameters and the other units that it needs."""

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
    """One training run, merge, mixture of experts ... of a recipe.

    Its key, and so its result, depends on `params`, on the units it `needs` by role, and on the
    number of threads (`cpus`), which changes bits. `about` is a description for people. `steps` are
    its training steps, for estimates of time. `gpus` may be a fraction.
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
        """Sixteen hex digits over the kind, parameters, needs and threads."""
        needs = {role: unit.key for role, unit in self.needs.items()}
        return unit_key(
            {"kind": self.kind, "params": self.params, "needs": needs, "cpus": self.cpus}
        )


def unit_key(fields: Mapping[str, Any]) -> str:
    """The key of a unit whose fields are given as JSON, with needs as keys."""
    deciding = [fields["kind"], fields["params"], fields["needs"], fields["cpus"]]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WorkContext:
    """Where units run: the Hub, the owner of the repositories, a scratch folder, the device.

    `recipes` is the folder of all recipes, which may contain bases. `code` is the version of the
    measuring code; it is part of repository names, so that code versions do not mix. All fields are
    plain values, as they are sent to other processes.
    """

    hub: str | None
    owner: str
    folder: Path
    recipes: Path = Path("recipes")
    code: str = ""
    device: str | None = None


def with_needs(units: Iterable[Unit]) -> list[Unit]:
    """These units and all units that they need, each once and after the units that it needs."""
    ordered: dict[str, Unit] = {}

    def add(unit: Unit) -> None:
        if unit.key not in ordered:
            for needed in unit.needs.values():
                add(needed)
            ordered[unit.key] = unit

    for unit in units:
        add(unit)
    return list(ordered.values())
