"""hubmerge.json: where a checkpoint came from, in enough detail to make it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.errors import IntegrityError
from hubmerge.kinds import EXPERT, MERGE, MOE, ModelKind
from hubmerge.refs import printable

NAME = "hubmerge.json"
FORMAT = 1
_BYTES = 5_000_000
Count = Annotated[int, Field(ge=0, le=10**12)]
Accuracy = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,96}$")]


@dataclass(frozen=True)
class Point:
    """One point of a training curve.

    `loss` is the mean since the last point, `accuracy` and `count` are of the validation split, and
    `lr` is the learning rate of the update that led here, 0 before the first. Where several tasks
    are trained together `tasks` maps each by its name to its own accuracy, `accuracy` is the mean
    of these, and `count` the examples of all.
    """

    step: Count
    loss: float | None
    accuracy: float
    count: Count
    lr: float
    tasks: Mapping[Label, Accuracy] = field(default_factory=dict)

    def said(self) -> dict[str, Any]:
        """What JSON has of it; one task goes without `tasks`."""
        said = dataclasses.asdict(self)
        return said if self.tasks else {name: said[name] for name in said if name != "tasks"}


@dataclass(frozen=True)
class Source:
    """A checkpoint something was made from: its label, its digest, and its part in it.

    `sha` is its commit, or again the digest for a local folder. `task` is the id of the task it
    was trained for. `last_step` is the last step its repository had at the time, with `last_sha`
    its commit: what the gain over merging the last steps is measured against. `weight`, `keep` (the
    fraction of its largest changes that is kept) and `intruders` (the factor on its intruder
    dimensions) say how its task vector went in. `licence` is the one that its card names at that
    commit, as the Hub spells it, None where it names none. `folder` is where it lies inside its
    repository, None at the root: one commit may hold many checkpoint-N folders.
    """

    label: str
    sha: str
    digest: str
    step: Count | None = None
    task: str | None = None
    weight: float = 1.0
    last_step: Count | None = None
    last_sha: str | None = None
    keep: float = 1.0
    intruders: float = 1.0
    licence: str | None = None
    folder: str | None = None

    @property
    def key(self) -> str:
        """What identifies it: its commit, and its folder where that holds several."""
        return f"{self.sha}/{self.folder}" if self.folder else self.sha

    @property
    def is_local(self) -> bool:
        return self.sha == self.digest

    @property
    def name(self) -> str:
        """The repository or folder, without revision."""
        return self.label if self.is_local else self.label.partition("@")[0]

    @property
    def task_name(self) -> str | None:
        """The task's name, without the digest of its definition."""
        return self.task.partition("@")[0] if self.task else None


@dataclass(frozen=True)
class Manifest:
    """How a checkpoint came to be.

    `task` is the id of an expert's task, its name and the digest of its definition as name@digest.
    `files` maps each of its files, by its path in the folder, to its SHA-256, except this one and
    the card, which is told anew whenever there are new scores. `lock` is the SHA-256 of the lock
    beside it, for a merge made from one. `licence` is the one that whoever merged stated, None
    where it follows from the sources'.
    """

    kind: ModelKind
    base: Source
    experts: tuple[Source, ...] = ()
    method: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    task_kind: str = "image"
    step: Count | None = None
    last_step: Count | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    validation: tuple[Point, ...] = ()
    run: str | None = None
    lock: str | None = None
    licence: str | None = None
    layout: str = "transformers"
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def is_expert(self) -> bool:
        return self.kind == EXPERT

    @property
    def is_merge(self) -> bool:
        return self.kind == MERGE

    @property
    def is_moe(self) -> bool:
        return self.kind == MOE

    @property
    def noun(self) -> str:
        """What people call its kind: an expert, a merge or a mixture."""
        return "mixture" if self.is_moe else self.kind

    @property
    def recipe(self) -> str:
        """The identity of a merge before it is made: 64 hex digits over what decides its bytes.

        Of a mixture, which is trained: over what it starts from.
        """
        return recipe_id(self.base, self.experts, self.method or "", self.params)

    @property
    def task_name(self) -> str:
        """The name of an expert's task."""
        return (self.task or "").partition("@")[0]

    @property
    def digest(self) -> str:
        """The digest of the model it vouches for."""
        return files_digest(self.files)

    def with_files(self, files: Mapping[str, str]) -> Manifest:
        """The same manifest, vouching for these files."""
        return dataclasses.replace(self, files=dict(sorted(files.items())))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same manifest is the same bytes."""
        said = dataclasses.asdict(self)
        said["validation"] = [point.said() for point in self.validation]
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def files_digest(files: Mapping[str, str]) -> str:
    """64 hex digits that name a model wherever it lies: over the SHA-256 of each file by its name.

    The files are weights and whatever decides what is made of them: configuration and tokenizer.
    """
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def recipe_id(
    base: Source, experts: tuple[Source, ...], method: str, params: Mapping[str, Any]
) -> str:
    """64 hex digits that two merges share exactly if they are made of the same in the same way."""
    parts = sorted(_part(expert) for expert in experts)
    said = [base.sha, parts, method, dict(params)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _part(expert: Source) -> list[Any]:
    """What of an expert decides the merge; what is left at its default goes unsaid."""
    whole = (expert.keep, expert.intruders) == (1.0, 1.0)
    return [expert.key, expert.weight, *(() if whole else (expert.keep, expert.intruders))]


def last_recipe(manifest: Manifest) -> str | None:
    """The recipe of the same merge made from every expert's last step, None where unknown."""
    if any(expert.last_sha is None or expert.folder for expert in manifest.experts):
        return None
    last = tuple(
        dataclasses.replace(expert, sha=expert.last_sha or "") for expert in manifest.experts
    )
    return recipe_id(manifest.base, last, manifest.method or "", manifest.params)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest that anybody may have written; raises IntegrityError naming `where`.

    Keys that this version does not know are passed over.
    """
    if len(data) > _BYTES:
        raise IntegrityError(f"{NAME} of {where} is larger than {_BYTES} bytes.")
    try:
        said = json.loads(data)
        if isinstance(said, dict) and said.get("format", FORMAT) != FORMAT:
            raise IntegrityError(
                f"{NAME} of {where} has format {printable(str(said['format']))[:20]}, and this "
                f"hubmerge knows {FORMAT}.",
                "Install a newer hubmerge.",
            )
        # Strict, so that "9" is no step and 1 no label.
        return TypeAdapter(Manifest).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise IntegrityError(f"{NAME} of {where} is not a manifest: {printable(reason)[:200]}.")
