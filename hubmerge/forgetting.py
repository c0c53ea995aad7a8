"""forgotten.json of a merge: rows that an expert predicts correctly and the merge does not.

They are counted by bin of difficulty and by class. The file is measured after merging and may be
measured again, so the manifest does not list its SHA-256: it is parsed as untrusted input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import printable
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

FORGOTTEN_JSON = "forgotten.json"
FORMAT = 1
_MAX_BYTES = 16_000_000
_MAX_NAME_LENGTH = 300
_MAX_EXPERTS, _MAX_BINS = 256, 100
_HARD_SHARE = 0.3  # the share of the bins that the paper calls hard (arXiv 2506.14126, fig. 4)
_HINT = "Run `hubmerge explain` again."

Count = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


@dataclass(frozen=True)
class ForgottenByBin:
    """Rows by bin, easiest first: `known` to the expert, and `counts` of those forgotten."""

    counts: tuple[Count, ...]
    known: tuple[Count, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def share(self) -> tuple[float, ...]:
        """The share of each bin in all forgotten rows: adds up to 1, or zeros if there are none."""
        return tuple(count / max(self.total, 1) for count in self.counts)

    @property
    def rate(self) -> tuple[float, ...]:
        """The forgotten share of the known rows of each bin, 0 for a bin without known rows."""
        pairs = zip(self.counts, self.known, strict=True)
        return tuple(count / max(known, 1) for count, known in pairs)

    @property
    def hardest_share(self) -> float:
        """The share of the hardest 30 % of the bins in all forgotten rows."""
        return sum(self.share[len(self.share) - self.hard_bins :])

    @property
    def hard_bins(self) -> int:
        """How many bins count as hard; at least one."""
        return max(1, round(_HARD_SHARE * len(self.counts)))


@dataclass(frozen=True)
class ClassForgetting:
    """A class: its known rows, the forgotten ones, and the class most of them are predicted as."""

    name: str
    known: Count
    forgotten: Count
    taken_for: str = ""


@dataclass(frozen=True)
class ForgottenRow:
    """A forgotten row: its index in the split, its class, the merge's prediction, its EL2N."""

    row: Count
    label: str
    predicted: str
    score: Score


@dataclass(frozen=True)
class ExpertForgetting:
    """What a merge forgot of one expert's task, given by its id.

    `before` is the expert's accuracy on the rows, `after` the merge's. `learnt` counts rows that
    the merge predicts correctly and the expert does not. `scored_by` are the models whose mean EL2N
    sorts rows into bins: the expert alone if no difficulty was given.
    """

    expert: str
    task: str
    scored_by: tuple[str, ...]
    before: Share
    after: Share
    learnt: Count
    bins: ForgottenByBin
    classes: tuple[ClassForgetting, ...]
    examples: tuple[ForgottenRow, ...] = ()

    @property
    def known(self) -> int:
        """How many rows the expert predicts correctly."""
        return sum(self.bins.known)


@dataclass(frozen=True)
class Forgetting:
    """What a merge, given by its digest, forgot of each of its experts' tasks, on a split.

    `pictured` states whether a picture of the examples is in the same folder.
    """

    model: str
    split: str
    experts: tuple[ExpertForgetting, ...]
    pictured: bool = False
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values give equal bytes."""
        fields = dataclasses.asdict(self)
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_forgetting(data: bytes, where: str, model: str) -> Forgetting:
    """Parse an untrusted forgotten.json; raises IntegrityError naming `where`.

    Also if it is about another model than the one with the digest `model`. Unknown keys are
    ignored.
    """
    if len(data) > _MAX_BYTES:
        raise IntegrityError(f"{where} is larger than {_MAX_BYTES} bytes.", _HINT)
    try:
        forgetting = validate_json(Forgetting, data)
    except ValidationError as error:
        reason = printable(first_problem(error))[:200]
        raise IntegrityError(f"{where} is not a valid forgotten.json: {reason}.", _HINT) from None
    problems = [f"{where}: {problem}" for problem in _problems(forgetting, model)]
    raise_together(IntegrityError, problems, _HINT)
    return forgetting


def read_forgetting(folder: Path, model: str) -> Forgetting | None:
    """The forgetting in a merge's folder, None if it was not measured; raises IntegrityError."""
    path = folder / FORGOTTEN_JSON
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_forgetting(file.read(_MAX_BYTES + 1), str(path), model)


def _problems(forgetting: Forgetting, model: str) -> Iterator[str]:
    if forgetting.format != FORMAT:
        yield f"it has format {forgetting.format}, and this hubmerge knows {FORMAT}."
    if forgetting.model != model:
        other = printable(forgetting.model[:12])
        yield f"it is about another model ({other}, this is {model[:12]})."
    if not 1 <= len(forgetting.experts) <= _MAX_EXPERTS:
        yield f"it has {len(forgetting.experts)} experts, and 1 to {_MAX_EXPERTS} are allowed."
    for expert in forgetting.experts:
        counts, known = expert.bins.counts, expert.bins.known
        if len(counts) != len(known) or not 1 <= len(counts) <= _MAX_BINS:
            yield f"{printable(expert.expert[:40])!r} has {len(counts)} and {len(known)} bins."
        elif any(f > k for f, k in zip(counts, known, strict=True)):
            yield f"{printable(expert.expert[:40])!r} has more forgotten rows than known ones."
    for name in sorted(set(_names(forgetting))):
        if len(name) > _MAX_NAME_LENGTH or printable(name) != name:
            yield f"{printable(name[:40])!r} is not a valid name."
            break


def _names(forgetting: Forgetting) -> Iterator[str]:
    yield forgetting.split
    for expert in forgetting.experts:
        yield from (expert.expert, expert.task, *expert.scored_by)
        yield from (name for part in expert.classes for name in (part.name, part.taken_for))
        yield from (name for row in expert.examples for name in (row.label, row.predicted))
