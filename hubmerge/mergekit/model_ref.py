"""A model as mergekit names it: a path or a repository, with a revision and an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from hubmerge.refs import ModelRef, check_revision, parse_ref
from hubmerge.specs.parsing import as_value_error

_KEYS = {"model", "lora", "override_architecture"}


@dataclass(frozen=True)
class MergekitRef:
    """`path[@revision][+adapter[@revision]]`; with an adapter, it is the model changed by it."""

    model: ModelRef
    adapter: ModelRef | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)

    @property
    def expert(self) -> ModelRef:
        """What is opened as an expert: the adapter, if there is one."""
        return self.adapter or self.model


def parse_mergekit_ref(value: object) -> MergekitRef:
    """Parse the text or the mapping that names a model; raises ValueError."""
    if isinstance(value, MergekitRef):
        return value
    if isinstance(value, str):
        model, plus, adapter = value.partition("+")
        if "+" in adapter:
            raise ValueError(f"{value!r} has two adapters, and mergekit takes one")
        return MergekitRef(_parse_path(model), _parse_path(adapter) if plus else None)
    if isinstance(value, Mapping) and "model" in value:
        if unknown := [str(key) for key in value if key not in _KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r} in the name of a model")
        if value.get("override_architecture") is not None:
            raise ValueError(
                "override_architecture is not supported: correct architectures in the config.json "
                "of a copy of the model"
            )
        lora = value.get("lora")
        return MergekitRef(_parse_path(value["model"]), _parse_path(lora) if lora else None)
    raise ValueError(f"{value!r} does not name a model; write a folder, or owner/name")


def _parse_path(value: object) -> ModelRef:
    """A path with its revision, as text or as a mapping of both."""
    path = revision = ""
    if isinstance(value, Mapping) and set(value) <= {"path", "revision"}:
        path, revision = str(value.get("path", "")), str(value.get("revision") or "")
    elif isinstance(value, str):
        path, _, revision = value.partition("@")
        if value.endswith("@"):
            raise ValueError(f"{value!r} ends with '@'")
    else:
        raise ValueError(f"{value!r} does not name a model; write a folder, or owner/name")
    as_value_error(lambda text: str(parse_ref(text)), path)
    ref = parse_ref(path)
    if not revision:
        return ref
    if ref.is_local:
        raise ValueError(
            f"{path} is a folder, which has no revisions: mergekit ignores @{revision}; leave it "
            "out"
        )
    return dataclasses.replace(ref, revision=as_value_error(check_revision, revision))
