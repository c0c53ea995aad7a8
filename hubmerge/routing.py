"""routing.json of a mixture: which task's tokens went to which expert by layer, and at what cost.

It is measured after training and may be measured again, so no manifest vouches for it: it is read
as if it were written by an enemy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import printable

NAME = "routing.json"
FORMAT = 1
_BYTES = 16_000_000
_DIGITS = 6
_OFF = 1e-3  # how far from 1 the shares of a layer may add up
_LONGEST_NAME = 300
_MOST = {"tasks": 256, "experts": 256, "layers": 4096}

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0, le=10**18)]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: of the base, of one model merged of the experts, of the mixture.

    `trained` are those of the mixture that training changed.
    """

    base: Size
    merged: Size
    mixture: Size
    trained: Size


@dataclass(frozen=True)
class Flops:
    """Multiply-adds for one token in the linear layers that have experts, each counted as one."""

    base: Size
    merged: Size
    mixture: Size


@dataclass(frozen=True)
class Cost:
    """What the mixture takes, beside its base and one merged model."""

    parameters: Parameters
    flops_per_token: Flops


@dataclass(frozen=True)
class Routing:
    """Mean routing weights of a mixture: `share[task][layer][expert]`, over the tokens of a split.

    `tasks` are ids, `experts` names in the order of the router's rows, `layers` module paths in the
    order of the model. The shares of a layer add up to 1.
    """

    split: str
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    layers: tuple[str, ...]
    share: tuple[tuple[tuple[Share, ...], ...], ...]
    cost: Cost
    format: int = FORMAT

    @property
    def over_layers(self) -> list[list[float]]:
        """[task][expert]: the mean over layers."""
        return [
            [math.fsum(column) / len(layers) for column in zip(*layers, strict=True)]
            for layers in self.share
        ]

    @property
    def entropies(self) -> list[float]:
        """[task]: the entropy of a layer's shares in bits, mean over layers; log2 E if all alike.

        It is that of mean weights: what differs by token but not on average is at log2 E.
        """
        return [math.fsum(map(_entropy, layers)) / len(layers) for layers in self.share]

    def to_bytes(self) -> bytes:
        """Canonical JSON, shares to six digits: the same routing is the same bytes."""
        share = [[[round(s, _DIGITS) for s in row] for row in layers] for layers in self.share]
        said = {**dataclasses.asdict(dataclasses.replace(self, share=())), "share": share}
        return (json.dumps(said, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_routing(data: bytes, where: str) -> Routing:
    """Read a routing that anybody may have written; raises IntegrityError naming `where`.

    Keys that this version does not know are passed over.
    """
    if len(data) > _BYTES:
        raise IntegrityError(f"{where} is larger than {_BYTES} bytes: it is no routing.")
    try:
        routing = TypeAdapter(Routing).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")[:200]
        raise IntegrityError(f"{where} is no routing: {reason}.") from None
    problems = [f"{where}: {problem}" for problem in _problems(routing)]
    raise_together(IntegrityError, problems, "Measure the mixture anew.")
    return routing


def routing_beside(folder: Path) -> Routing | None:
    """The routing in a mixture's folder, None where none was measured; raises IntegrityError."""
    path = folder / NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_routing(file.read(_BYTES + 1), str(path))


def _entropy(shares: Sequence[float]) -> float:
    return -math.fsum(share * math.log2(share) for share in shares if share > 0)


def _problems(routing: Routing) -> Iterator[str]:
    if routing.format != FORMAT:
        yield f"it has format {routing.format}, and this hubmerge knows {FORMAT}."
    yield from _name_problems("split", (routing.split,))
    named = {name: getattr(routing, name) for name in _MOST}
    for what, names in named.items():
        if not 1 <= len(names) <= _MOST[what]:
            yield f"it has {len(names)} {what}, and may have 1 to {_MOST[what]}."
        yield from _name_problems(what, names)
    if not _is_shaped(routing):
        yield "its shares are not tasks x layers x experts."
        return
    sums = [math.fsum(row) for layers in routing.share for row in layers]
    if wrong := [total for total in sums if abs(total - 1) > _OFF]:
        yield f"{len(wrong)} of its {len(sums)} rows of shares add up to {wrong[0]:.6g} and not 1."


def _name_problems(what: str, names: Sequence[str]) -> Iterator[str]:
    """A sentence for the first name that cannot be shown, and for the first that is there twice."""
    for name in names:
        if not name.strip() or len(name) > _LONGEST_NAME or printable(name) != name:
            yield f"{printable(name[:40])!r} is no name among its {what}."
            break
    for name, count in Counter(names).most_common(1):
        if count > 1:
            yield f"{printable(name[:40])!r} is {count} times among its {what}."


def _is_shaped(routing: Routing) -> bool:
    wanted = len(routing.layers), len(routing.experts)
    return len(routing.share) == len(routing.tasks) and all(
        len(layers) == wanted[0] and all(len(row) == wanted[1] for row in layers)
        for layers in routing.share
    )
