"""hubmerge.json: how a checkpoint was made, in enough detail to make it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, ValidationError

from hubmerge.errors import IntegrityError
from hubmerge.kinds import EXPERT, MERGE, MOE, ModelKind
from hubmerge.refs import printable
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

MANIFEST_JSON = "hubmerge.json"
LOCK_FILE = "hubmerge.lock"  # beside it, in a merge that was made from one
FORMAT = 1
_MAX_BYTES = 5_000_000
Count = Annotated[int, Field(ge=0, le=10**12)]
Accuracy = Annotated[float, Field(ge=0, le=1)]
Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,96}$")]


@dataclass(frozen=True)
class ValidationPoint:
    """One point of a training curve.

    `loss` is the mean since the previous point, `accuracy` and `count` are those of the validation
    split, and `lr` is the learning rate of the last update, 0 before the first. If several tasks
    are trained together, `tasks` maps the name of each to its accuracy, `accuracy` is the mean of
    these, and `count` the number of all examples.
    """

    step: Count
    loss: float | None
    accuracy: float
    count: Count
    lr: float
    tasks: Mapping[Label, Accuracy] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; a point of one task has no `tasks`."""
        fields = dataclasses.asdict(self)
        if not self.tasks:
            del fields["tasks"]
        return fields


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of a step's task vector: of all tensors, and of each layer that changed.

    A layer is named as in the base's tensors, `model.layers.3`; tensors outside of the layers are
    `before` or `after` them.
    """

    model: Norm
    layers: Mapping[str, Norm] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Source:
    """A checkpoint that another one was made from, and how it was used.

    `sha` is its commit; for a local folder it is the digest again. `task` is the id of the task it
    was trained for. `last_step` is the last step that its repository had at the time and `last_sha`
    the commit of that step: gains are measured against the merge of the last steps. `weight`,
    `keep` (the fraction of its largest changes that is kept) and `intruders` (the factor on its
    intruder dimensions) are applied to its task vector. `licence` is the one on its card at that
    commit, as the Hub spells it, or None. `folder` is its folder in the repository, None for the
    root: one commit may hold many checkpoint-N folders. `settings` are parameters of the method for
    this expert alone, or for some of its tensors. `weights` is the digest of its weight files
    alone; see `Checkpoint.digest`. With `averaged`, rising steps of one expert of which this is the
    last, their mean is merged, not this step alone, and `weights` identifies the mean.
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
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None
    averaged: tuple[Source, ...] = ()

    @property
    def members(self) -> tuple[Source, ...]:
        """The checkpoints that it stands for: itself, or those that are averaged."""
        return self.averaged or (self,)

    @property
    def steps_text(self) -> str:
        """Its step, or those that are averaged: 64, or 16+32+64."""
        return "+".join(str(member.step) for member in self.members)

    @property
    def content_key(self) -> str:
        """What seeds its masks and orders the sums: the same for the same weights, wherever.

        Results of versions that did not record it were seeded by commits.
        """
        return self.weights or self.key

    @property
    def key(self) -> str:
        """Its commit, followed by its folder if it is not at the root of the repository."""
        return f"{self.sha}/{self.folder}" if self.folder else self.sha

    @property
    def is_local(self) -> bool:
        return self.sha == self.digest

    @property
    def name(self) -> str:
        """The repository or the local folder, without revision."""
        return self.label if self.is_local else self.label.partition("@")[0]

    @property
    def task_name(self) -> str | None:
        """The name of its task, without the digest of the definition."""
        return self.task.partition("@")[0] if self.task else None


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


def recipe_id(
    base: Source, experts: tuple[Source, ...], method: str, params: Mapping[str, Any]
) -> str:
    """64 hex digits that are equal for two merges exactly if all their inputs are equal."""
    return next(recipe_ids(base, experts, [encode_method(method, params)]))


def encode_method(method: str, params: Mapping[str, Any]) -> bytes:
    """A method with its parameters, for `recipe_ids`."""
    return json.dumps([method, dict(params)], sort_keys=True).removeprefix("[").encode()


def recipe_ids(
    base: Source, experts: tuple[Source, ...], methods: Iterable[bytes]
) -> Iterator[str]:
    """The recipe id of each encoded method with the same base and experts, in microseconds."""
    parts = sorted((_recipe_part(expert) for expert in experts), key=_recipe_order)
    inputs = json.dumps([base.sha, parts], sort_keys=True).removesuffix("]") + ", "
    start = hashlib.sha256(inputs.encode())
    for method in methods:
        recipe = start.copy()
        recipe.update(method)
        yield recipe.hexdigest()


def _recipe_part(expert: Source) -> list[Any]:
    """The fields of an expert that decide the merge; defaults of later fields are left out."""
    default = (expert.keep, expert.intruders) == (1.0, 1.0)
    parts = [expert.key, expert.weight, *(() if default else (expert.keep, expert.intruders))]
    own = [json.dumps(dict(expert.settings), sort_keys=True)] if expert.settings else []
    averaged = [{"averaged": [member.key for member in expert.averaged]}] if expert.averaged else []
    return [*parts, *own, *averaged]


def _recipe_order(part: list[Any]) -> list[Any]:
    """The part itself, with an average, which cannot be compared, as text."""
    return [json.dumps(value) if isinstance(value, dict) else value for value in part]


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
