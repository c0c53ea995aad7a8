"""moe_config.json of a mixture: its experts in order, how its router reads, where its layers are.

Read as if it were written by an enemy: names become folders and module paths.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.refs import printable
from hubmerge.weights.header import load_object, shown
from hubmerge.weights.layout import plain_file

CONFIG, ROUTER, EXPERTS = "moe_config.json", "router.safetensors", "experts"
FORMAT = 1
_BYTES = 4 << 20
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_MODULE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")

Start = Literal["arrow", "zero", "random", "centroid", "prompts"]


@dataclass(frozen=True)
class RouterConfig:
    """How a router's rows become weights: |R x| or, `signed`, R x; over `temperature`.

    `init` is what the rows were before training.
    """

    signed: bool = False
    temperature: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)] = 1.0
    init: Start = "arrow"


@dataclass(frozen=True)
class MoeExpert:
    """One expert: its folder's name, the id of its task, and where it started from."""

    name: str
    task: str | None = None
    step: int | None = None
    source_repo: str | None = None
    source_revision: str | None = None


@dataclass(frozen=True)
class MoeConfig:
    """What a mixture's weights mean; `modules` are the layers that have a router, in their order.

    `base_digest` is over the base's files, `layout` is whose loader opens the base.
    """

    base_model: str
    base_revision: str | None
    base_digest: str
    layout: Literal["open_clip", "transformers"]
    experts: tuple[MoeExpert, ...]
    top_k: Annotated[int, Field(ge=1)]
    modules: tuple[str, ...]
    router: RouterConfig = RouterConfig()
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same mixture is the same bytes."""
        said = dataclasses.asdict(self)
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def is_mixture(folder: Path) -> bool:
    """Whether a folder says that it holds a mixture."""
    return (folder / CONFIG).exists()


def read_moe_config(folder: Path) -> MoeConfig:
    """The configuration of a mixture's folder.

    Keys that this version does not know are passed over. Raises CheckpointError.
    """
    path = plain_file(folder, CONFIG)
    with path.open("rb") as file:
        return parse_moe_config(file.read(_BYTES + 1), str(folder / CONFIG))


def parse_moe_config(data: bytes, where: str) -> MoeConfig:
    """The configuration in these bytes; `where` is the name that errors give it."""
    if len(data) > _BYTES:
        raise CheckpointError(f"{where} is too large to be the configuration of a mixture.")
    said = load_object(data, where)
    if said.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{where} has format {shown(str(said['format']))[:20]}, and this hubmerge knows "
            f"{FORMAT}.",
            "Install a newer hubmerge.",
        )
    try:
        config = TypeAdapter(MoeConfig).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")[:200]
        raise CheckpointError(f"{where} is not the configuration of a mixture: {reason}.") from None
    problems = [f"{where}: {problem}" for problem in _problems(config)]
    raise_together(CheckpointError, problems, "Fetch or make the mixture anew.")
    return config


def expert_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """Folder names for experts called so, in their order: made plain, and no two the same."""
    names: list[str] = []
    for text in wanted:
        plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:56].strip("-") or "expert"
        ways = (plain, *(f"{plain}-{number}" for number in range(2, len(wanted) + 1)))
        names.append(next(way for way in ways if way not in names))
    return tuple(names)


def _problems(config: MoeConfig) -> Iterator[str]:
    names = [expert.name for expert in config.experts]
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name:
            yield f"{shown(name)!r} is no name of an expert."
    for name, count in Counter(names).items():
        if count > 1:
            yield f"two experts are called {shown(name)!r}."
    if not 1 <= config.top_k <= len(names):
        yield f"top_k is {config.top_k}, and there are {len(names)} experts."
    if not config.modules or len(set(config.modules)) < len(config.modules):
        yield "its modules are none, or one of them twice."
    for module in config.modules:
        if not _MODULE.fullmatch(module):
            yield f"{shown(module)!r} is no module."
