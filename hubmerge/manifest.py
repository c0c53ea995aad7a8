"""hubmerge.json: how a checkpoint was made, in enough detail to make it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from hubmerge.errors import IntegrityError
from hubmerge.kinds import EXPERT, MERGE, MOE, ModelKind
from hubmerge.recipe_ids import recipe_id
from hubmerge.refs import printable
from hubmerge.source import Count, Source
from hubmerge.training_curve import Norms, ValidationPoint
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

MANIFEST_JSON = "hubmerge.json"
LOCK_FILE = "hubmerge.lock"  # beside it, in a merge that was made from one
FORMAT = 1
_MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Manifest:
    """How a checkpoint was made.

    `task` is the id of an expert's task: its name and the digest of its definition as name@digest.
    `files` maps the path of each file in the folder to its SHA-256, except this file and the card,
    which is rendered again for new scores. `lock` is the SHA-256 of the lock in the same folder,
    for a merge made from one. `licence` is set only if the user stated it; otherwise it follows
    from the licences of the sources. `norms` are those of an expert's step, compared with its base.
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
    validation: tuple[ValidationPoint, ...] = ()
    norms: Norms | None = None
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
    def extracted_from(self) -> Source | None:
        """The whole expert that an adapter was extracted from, None for any other model."""
        return self.experts[0] if self.is_expert and self.experts else None

    @property
    def has_other_layers(self) -> bool:
        """Whether a merge has layers from several places, which its command alone does not say."""
        return any("layers" in expert.settings for expert in self.experts)

    @property
    def noun(self) -> str:
        """Its kind in prose: expert, merge or mixture."""
        return "mixture" if self.is_moe else self.kind

    @property
    def recipe(self) -> str:
        """64 hex digits that identify a merge before it is made: a hash of all its inputs.

        For a mixture of experts, which is trained, a hash of what it starts from.
        """
        return recipe_id(self.base, self.experts, self.method or "", self.params)

    @property
    def task_name(self) -> str:
        """The name of an expert's task."""
        return (self.task or "").partition("@")[0]

    @property
    def own_accuracy(self) -> float | None:
        """The last value of its curve; None if it is of another step, or not from 0 to 1.

        A run of Trainer may be evaluated at other steps than it is saved.
        """
        last = self.validation[-1] if self.validation else None
        is_valid = last is not None and 0 <= last.accuracy <= 1 and last.step == self.step
        return last.accuracy if last is not None and is_valid else None

    @property
    def curve_name(self) -> str:
        """What the points of its curve are: accuracy, or a metric of a run trained elsewhere."""
        return str(self.training.get("curve") or "accuracy")

    @property
    def digest(self) -> str:
        """The digest of the model, computed from `files`."""
        return files_digest(self.files)

    def with_files(self, files: Mapping[str, str]) -> Manifest:
        """A copy with other `files`."""
        return dataclasses.replace(self, files=dict(sorted(files.items())))

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values give equal bytes."""
        fields = without_empty_averages(dataclasses.asdict(self))
        fields["validation"] = [point.to_json() for point in self.validation]
        if self.norms is None:
            del fields["norms"]
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def without_empty_averages(fields: Any) -> Any:
    """JSON values without `averaged` where nothing is, as they were before steps were averaged."""
    if isinstance(fields, dict):
        items = ((k, v) for k, v in fields.items() if k != "averaged" or v)
        return {key: without_empty_averages(value) for key, value in items}
    if isinstance(fields, list | tuple):
        return [without_empty_averages(value) for value in fields]
    return fields


def files_digest(files: Mapping[str, str]) -> str:
    """64 hex digits that identify a model wherever it is stored: a hash of its files' SHA-256.

    The files are the weights and all that decides how they are used: configuration and tokenizer.
    """
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def recipe_of_last_steps(manifest: Manifest) -> str | None:
    """The recipe of the same merge with the last step of every expert, None if one is not known."""
    if any(expert.last_sha is None or expert.folder for expert in manifest.experts):
        return None
    last = tuple(
        dataclasses.replace(expert, sha=expert.last_sha or "", averaged=())
        for expert in manifest.experts
    )
    return recipe_id(manifest.base, last, manifest.method or "", manifest.params)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse an untrusted manifest; raises IntegrityError naming `where`.

    Unknown keys are ignored.
    """
    if len(data) > _MAX_BYTES:
        raise IntegrityError(f"{MANIFEST_JSON} of {where} is larger than {_MAX_BYTES} bytes.")
    try:
        fields = json.loads(data)
        if isinstance(fields, dict) and fields.get("format", FORMAT) != FORMAT:
            raise IntegrityError(
                f"{MANIFEST_JSON} of {where} has format {printable(str(fields['format']))[:20]}, "
                f"and this hubmerge knows {FORMAT}.",
                "Install a newer hubmerge.",
            )
        return validate_json(Manifest, data)
    except ValidationError as error:
        reason = first_problem(error)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise IntegrityError(
        f"{MANIFEST_JSON} of {where} is not a valid manifest: {printable(reason)[:200]}."
    )
