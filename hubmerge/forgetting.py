"""forgotten.json of a merge: what its experts have right and it has wrong, by bin and class.

It is measured after merging and may be measured again, so no manifest vouches for it: it is read
as if it were written by an enemy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import printable

NAME = "forgotten.json"
FORMAT = 1
_BYTES = 16_000_000
_LONGEST_NAME = 300
_MOST_EXPERTS, _MOST_BINS = 256, 100
_HARDEST = 0.3  # the part of the bins that the paper calls hard (arXiv 2506.14126, fig. 4)
_WAY_OUT = "Run `hubmerge explain` again."

Count = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


@dataclass(frozen=True)
class Forgotten:
    """Rows by bin, the easiest first: those the expert has right, and of them the forgotten."""

    counts: tuple[Count, ...]
    known: tuple[Count, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def share(self) -> tuple[float, ...]:
        """What each bin has of all that is forgotten: adds up to 1, zeros where nothing is."""
        return tuple(count / max(self.total, 1) for count in self.counts)

    @property
    def rate(self) -> tuple[float, ...]:
        """The forgotten part of what the expert has right, 0 where it has nothing right."""
        pairs = zip(self.counts, self.known, strict=True)
        return tuple(count / max(known, 1) for count, known in pairs)

    @property
    def hardest_share(self) -> float:
        """What the hardest three tenths of the bins have of all that is forgotten."""
        return sum(self.share[len(self.share) - self.hard :])

    @property
    def hard(self) -> int:
        """How many bins these are; at least one."""
        return max(1, round(_HARDEST * len(self.counts)))


@dataclass(frozen=True)
class OfClass:
    """A class: rows the expert has right, of them the forgotten, and what most are taken for."""

    name: str
    known: Count
    forgotten: Count
    taken_for: str = ""


@dataclass(frozen=True)
class Example:
    """A forgotten row: its place in the split, its class, the merge's answer, its EL2N."""

    row: Count
    label: str
    predicted: str
    score: Score


@dataclass(frozen=True)
class OfExpert:
    """What a merge forgot of one expert's task, an id.

    `before` is the expert's accuracy on the rows, `after` the merge's; `learnt` are rows that the
    merge has right and the expert wrong. `scored_by` are the models whose mean EL2N sorts rows into
    bins; the expert alone where no difficulty was given.
    """

    expert: str
    task: str
    scored_by: tuple[str, ...]
    before: Share
    after: Share
    learnt: Count
    bins: Forgotten
    classes: tuple[OfClass, ...]
    examples: tuple[Example, ...] = ()

    @property
    def known(self) -> int:
        """How many rows the expert has right."""
        return sum(self.bins.known)


@dataclass(frozen=True)
class Forgetting:
    """What a merge, by its digest, forgot of each of its experts' tasks, on a split.

    `pictured` says whether the examples lie beside it as a picture.
    """

    model: str
    split: str
    experts: tuple[OfExpert, ...]
    pictured: bool = False
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same forgetting is the same bytes."""
        said = dataclasses.asdict(self)
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_forgetting(data: bytes, where: str, model: str) -> Forgetting:
    """Read what anybody may have written; raises IntegrityError naming `where`.

    Also where it is about another model than that of the digest `model`. Keys that this version
    does not know are passed over.
    """
    if len(data) > _BYTES:
        raise IntegrityError(f"{where} is larger than {_BYTES} bytes.", _WAY_OUT)
    try:
        found = TypeAdapter(Forgetting).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")[:200]
        raise IntegrityError(f"{where} tells nothing forgotten: {reason}.", _WAY_OUT) from None
    problems = [f"{where}: {problem}" for problem in _problems(found, model)]
    raise_together(IntegrityError, problems, _WAY_OUT)
    return found


def forgetting_beside(folder: Path, model: str) -> Forgetting | None:
    """What lies in a merge's folder, None where nothing was measured; raises IntegrityError."""
    path = folder / NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_forgetting(file.read(_BYTES + 1), str(path), model)


def _problems(found: Forgetting, model: str) -> Iterator[str]:
    if found.format != FORMAT:
        yield f"it has format {found.format}, and this hubmerge knows {FORMAT}."
    if found.model != model:
        yield f"it is about another model ({printable(found.model[:12])}, this is {model[:12]})."
    if not 1 <= len(found.experts) <= _MOST_EXPERTS:
        yield f"it tells of {len(found.experts)} experts, and may of 1 to {_MOST_EXPERTS}."
    for one in found.experts:
        bins = len(one.bins.counts), len(one.bins.known)
        if bins[0] != bins[1] or not 1 <= bins[0] <= _MOST_BINS:
            yield f"{printable(one.expert[:40])!r} has {bins[0]} and {bins[1]} bins."
        elif any(f > k for f, k in zip(one.bins.counts, one.bins.known, strict=True)):
            yield f"{printable(one.expert[:40])!r} forgot more than it knew."
    for name in sorted(set(_names(found))):
        if len(name) > _LONGEST_NAME or printable(name) != name:
            yield f"{printable(name[:40])!r} is no name."
            break


def _names(found: Forgetting) -> Iterator[str]:
    yield found.split
    for one in found.experts:
        yield from (one.expert, one.task, *one.scored_by)
        yield from (part for its in one.classes for part in (its.name, its.taken_for))
        yield from (part for its in one.examples for part in (its.label, its.predicted))
