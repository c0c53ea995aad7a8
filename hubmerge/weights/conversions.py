"""The names that transformers 5 gives to tensors in memory, from the names in files.

A table, made by scripts/conversion_table.py, lists the renames of every class of transformers.
Files of older and newer versions, and adapters, which are named as in memory, then have the same
names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

_TABLE = "conversions.json"


class Conversion(NamedTuple):
    """One rename: a pattern and its target; only within `scope`, if there is one."""

    pattern: re.Pattern[str]
    target: str
    scope: str | None = None
    base_prefix: str = ""

    def __call__(self, name: str) -> str:
        """The new name; the same one if the pattern does not match."""
        prefix = self._prefix(name)
        if prefix is None:
            return name
        inner = name.removeprefix(prefix)
        match = self.pattern.search(inner)
        if match is None:
            return name
        target = self.target
        if r"\1" in target:
            target = target.replace(r"\1", match[1])
        return prefix + inner.replace(match[0], target, 1)

    def _prefix(self, name: str) -> str | None:
        """The part of the name before what is matched, None for a name outside of the scope."""
        if self.scope is None:
            return ""
        scope = f"{self.scope}." if self.scope else ""
        base = f"{self.base_prefix}." if self.base_prefix else ""
        return next((head for head in (base + scope, scope) if name.startswith(head)), None)


class Stack(NamedTuple):
    """Matrices of experts that transformers stacks: their names, with * for a number, and the new
    name.
    """

    sources: tuple[str, ...]
    target: str


def memory_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """The names in memory of a model with this config.json: name -> name in memory.

    The names do not change for classes that transformers does not convert, or does not know.
    """
    conversions = conversions_of(config)
    return {name: convert(name, conversions) for name in names}


def convert(name: str, conversions: Iterable[Conversion]) -> str:
    """The name after all renames."""
    for conversion in conversions:
        name = conversion(name)
    return name


def conversions_of(config: Mapping[str, Any]) -> Sequence[Conversion]:
    """The renames of the class that a configuration names, in their order; empty for any other."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    return next((found for name in listed if (found := _conversions_of_class(str(name)))), ())


def stacks_of(config: Mapping[str, Any]) -> Sequence[Stack]:
    """The stacks of experts in the class that a configuration names; empty for any other."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    found = (_read_table().get(str(name), {}).get("stacks") for name in listed)
    stacks = next((stacks for stacks in found if stacks), ())
    return [Stack(tuple(sources), target) for sources, target in stacks]


@cache
def _conversions_of_class(name: str) -> Sequence[Conversion]:
    return tuple(_parse(*rename) for rename in _read_table().get(name, {}).get("renames", ()))


@cache
def _read_table() -> Mapping[str, Mapping[str, Any]]:
    table = json.loads(files(__package__).joinpath(_TABLE).read_text(encoding="utf-8"))
    return {name: entry for entry in table["conversions"] for name in entry["classes"]}


def _parse(source: str, target: str, *scope: str) -> Conversion:
    return Conversion(re.compile(source), target, *scope)
