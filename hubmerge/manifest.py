"""hubmerge.json: where a checkpoint came from, in enough detail to make it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hubmerge.errors import IntegrityError
from hubmerge.refs import printable

NAME = "hubmerge.json"
FORMAT = 1
_BYTES = 5_000_000


@dataclass(frozen=True)
class Source:
    """A checkpoint something was made from: its label, commit, weights digest, and part in it.

    `last_step` is the last step its repository had at the time, with `last_sha` its commit: what
    the gain over merging the last steps is measured against.
    """

    label: str
    sha: str
    digest: str
    step: int | None = None
    task: str | None = None
    weight: float = 1.0
    last_step: int | None = None
    last_sha: str | None = None

    @property
    def name(self) -> str:
        """The repository or folder, without revision."""
        local = self.label.startswith((".", "/", "~"))
        return self.label if local else self.label.partition("@")[0]


@dataclass(frozen=True)
class Manifest:
    """How a checkpoint came to be.

    `files` maps each of its files to its SHA-256, except this one and the card, which is told
    anew whenever there are new scores.
    """

    kind: Literal["expert", "merge"]
    base: Source
    experts: tuple[Source, ...] = ()
    method: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] | None = None
    step: int | None = None
    last_step: int | None = None
    training: Mapping[str, Any] | None = None
    validation: tuple[Mapping[str, Any], ...] = ()
    run: str | None = None
    layout: str | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def recipe(self) -> str:
        """The identity of a merge before it is made: 64 hex digits over what decides its bytes."""
        return recipe_id(self.base, self.experts, self.method or "", self.params)

    @property
    def digest(self) -> str:
        """The digest of the weights it vouches for, as `Checkpoint.digest` computes it."""
        weights = sorted(name for name in self.files if name.endswith(".safetensors"))
        lines = "".join(f"{self.files[name]}  {name}\n" for name in weights)
        return hashlib.sha256(lines.encode()).hexdigest()

    def with_files(self, files: Mapping[str, str]) -> Manifest:
        """The same manifest, vouching for these files."""
        return dataclasses.replace(self, files=dict(sorted(files.items())))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same manifest is the same bytes."""
        said = dataclasses.asdict(self)
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def recipe_id(
    base: Source, experts: tuple[Source, ...], method: str, params: Mapping[str, Any]
) -> str:
    """64 hex digits that two merges share exactly if they are made of the same in the same way."""
    parts = sorted([expert.sha, expert.weight] for expert in experts)
    said = [base.sha, parts, method, dict(params)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def last_recipe(manifest: Manifest) -> str | None:
    """The recipe of the same merge made from every expert's last step, None where unknown."""
    if any(expert.last_sha is None for expert in manifest.experts):
        return None
    last = tuple(
        dataclasses.replace(expert, sha=expert.last_sha or "") for expert in manifest.experts
    )
    return recipe_id(manifest.base, last, manifest.method or "", manifest.params)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest that anybody may have written; raises IntegrityError naming `where`."""
    if len(data) > _BYTES:
        raise IntegrityError(f"{NAME} of {where} is larger than {_BYTES} bytes.")
    try:
        said = json.loads(data)
        if said.get("format", FORMAT) > FORMAT:
            raise IntegrityError(
                f"{NAME} of {where} has format {said['format']}, newer than this hubmerge knows.",
                "Install a newer hubmerge.",
            )
        known = {f.name for f in dataclasses.fields(Manifest)}
        values = {key: value for key, value in said.items() if key in known}
        values["base"] = Source(**said["base"])
        values["experts"] = tuple(Source(**expert) for expert in said.get("experts", ()))
        values["validation"] = tuple(said.get("validation", ()))
        manifest = Manifest(**values)
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = printable(str(error))[:200]
        raise IntegrityError(f"{NAME} of {where} is not a manifest: {reason}.") from error
    return manifest


def _check(manifest: Manifest) -> None:
    if manifest.kind not in ("expert", "merge"):
        raise ValueError(f"kind is {manifest.kind!r}")
    for name, value in (("step", manifest.step), ("last_step", manifest.last_step)):
        if not (value is None or (isinstance(value, int) and value >= 0)):
            raise ValueError(f"{name} is {value!r}")
    for source in (manifest.base, *manifest.experts):
        if not all(isinstance(text, str) for text in (source.label, source.sha, source.digest)):
            raise ValueError("a source lacks label, sha or digest")
