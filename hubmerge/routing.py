"""routing.json of a mixture of experts: routing weights by task, layer and expert, and the cost.

It is measured after training and may be measured again, so the manifest does not list its SHA-256:
it is parsed as untrusted input.
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

from pydantic import Field, ValidationError

from hubmerge.errors import IntegrityError, raise_together
from hubmerge.refs import printable
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

ROUTING_JSON = "routing.json"
FORMAT = 1
_MAX_BYTES = 16_000_000
_DIGITS = 6
_TOLERANCE = 1e-3  # the sum of the shares of a layer may differ from 1 by this much
_MAX_NAME_LENGTH = 300
_MAX_COUNTS = {"tasks": 256, "experts": 256, "layers": 4096}

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0, le=10**18)]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: of the base, of a merge of the experts, and of the mixture.

    `trained` counts the parameters of the mixture that training changed.
    """

    base: Size
    merged: Size
    mixture: Size
    trained: Size


@dataclass(frozen=True)
class Flops:
    """Multiply-adds per token in the linear layers that have experts; one counts as one FLOP."""

    base: Size
    merged: Size
    mixture: Size


@dataclass(frozen=True)
class MoeCost:
    """The cost of the mixture, with that of its base and of a merge for comparison."""

    parameters: Parameters
    flops_per_token: Flops


@dataclass(frozen=True)
class Routing:
    """Mean routing weights: `share[task][layer][expert]`, over the tokens of a split.

    `tasks` are ids, `experts` names in the order of the router's rows, `layers` module paths in the
    order of the model. The shares of a layer add up to 1.
    """

    split: str
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    layers: tuple[str, ...]
    share: tuple[tuple[tuple[Share, ...], ...], ...]
    cost: MoeCost
    format: int = FORMAT

    @property
    def mean_over_layers(self) -> list[list[float]]:
        """[task][expert]: the mean over layers."""
        return [
            [math.fsum(column) / len(layers) for column in zip(*layers, strict=True)]
            for layers in self.share
        ]

    @property
    def entropies(self) -> list[float]:
        """[task]: the entropy of a layer's shares in bits, mean over layers.

        It is log2 E for equal shares, also if the weights differ by token but not on average.
        """
        return [math.fsum(map(_entropy, layers)) / len(layers) for layers in self.share]

    def to_bytes(self) -> bytes:
        """Canonical JSON, shares rounded to six digits: equal values give equal bytes."""
        share = [[[round(s, _DIGITS) for s in row] for row in layers] for layers in self.share]
        fields = {**dataclasses.asdict(dataclasses.replace(self, share=())), "share": share}
        return (json.dumps(fields, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_routing(data: bytes, where: str) -> Routing:
    """Parse an untrusted routing.json; raises IntegrityError naming `where`.

    Unknown keys are ignored.
    """
    if len(data) > _MAX_BYTES:
        raise IntegrityError(
            f"{where} is larger than {_MAX_BYTES} bytes: it is not a routing.json."
        )
    try:
        routing = validate_json(Routing, data)
    except ValidationError as error:
        reason = printable(first_problem(error))[:200]
        raise IntegrityError(f"{where} is not a valid routing.json: {reason}.") from None
    problems = [f"{where}: {problem}" for problem in _problems(routing)]
    raise_together(IntegrityError, problems, "Measure the mixture again.")
    return routing


def read_routing(folder: Path) -> Routing | None:
    """The routing in a mixture's folder, None if it was not measured; raises IntegrityError."""
    path = folder / ROUTING_JSON
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_routing(file.read(_MAX_BYTES + 1), str(path))


def _entropy(shares: Sequence[float]) -> float:
    return -math.fsum(share * math.log2(share) for share in shares if share > 0)


def _problems(routing: Routing) -> Iterator[str]:
    if routing.format != FORMAT:
        yield f"it has format {routing.format}, and this hubmerge knows {FORMAT}."
    yield from _name_problems("split", (routing.split,))
    for field, most in _MAX_COUNTS.items():
        names = getattr(routing, field)
        if not 1 <= len(names) <= most:
            yield f"it has {len(names)} {field}, and 1 to {most} are allowed."
        yield from _name_problems(field, names)
    if not _has_valid_shape(routing):
        yield "the shape of its shares is not tasks x layers x experts."
        return
    sums = [math.fsum(row) for layers in routing.share for row in layers]
    if wrong := [total for total in sums if abs(total - 1) > _TOLERANCE]:
        yield f"{len(wrong)} of its {len(sums)} rows of shares add up to {wrong[0]:.6g}, not 1."


def _name_problems(field: str, names: Sequence[str]) -> Iterator[str]:
    """A sentence for the first invalid name, and one for the first duplicate."""
    for name in names:
        if not name.strip() or len(name) > _MAX_NAME_LENGTH or printable(name) != name:
            yield f"{printable(name[:40])!r} among its {field} is not a valid name."
            break
    for name, count in Counter(names).most_common(1):
        if count > 1:
            yield f"{printable(name[:40])!r} is {count} times among its {field}."


def _has_valid_shape(routing: Routing) -> bool:
    count, width = len(routing.layers), len(routing.experts)
    return len(routing.share) == len(routing.tasks) and all(
        len(layers) == count and all(len(row) == width for row in layers)
        for layers in routing.share
    )
