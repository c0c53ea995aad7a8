"""moe_config.json of a mixture of experts: its experts in order, its router, and its layers.

The file is not trusted, as its names become folders and module paths.
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

from pydantic import Field, ValidationError

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.refs import printable
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem
from hubmerge.weights.header import parse_json_object, safe_name
from hubmerge.weights.layout import regular_file

MOE_CONFIG, ROUTER_WEIGHTS, EXPERTS_FOLDER = "moe_config.json", "router.safetensors", "experts"
FORMAT = 1
_MAX_BYTES = 4 << 20
_EXPERT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")

RouterInit = Literal["arrow", "zero", "random", "centroid", "prompts"]


@dataclass(frozen=True)
class RouterConfig:
    """How a router R scores experts: |R x|, or R x if `signed`, divided by `temperature`.

    `init` is how its rows were initialised before training.
    """

    signed: bool = False
    temperature: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)] = 1.0
    init: RouterInit = "arrow"


@dataclass(frozen=True)
class MoeExpert:
    """One expert: its folder's name, the id of its task, and the checkpoint it started from."""

    name: str
    task: str | None = None
    step: int | None = None
    source_repo: str | None = None
    source_revision: str | None = None


@dataclass(frozen=True)
class MoeConfig:
    """How to read a mixture's weights; `modules` are the layers that have a router, in order.

    `base_digest` is over the base's files, `layout` is the library that opens the base.
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
        """Canonical JSON: the same configuration gives the same bytes."""
        fields = dataclasses.asdict(self)
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def is_moe_folder(folder: Path) -> bool:
    """Whether a folder holds a mixture of experts: it has a moe_config.json."""
    return (folder / MOE_CONFIG).exists()


def read_moe_config(folder: Path) -> MoeConfig:
    """The configuration in the folder of a mixture of experts.

    Unknown keys are ignored. Raises CheckpointError.
    """
    path = regular_file(folder, MOE_CONFIG)
    with path.open("rb") as file:
        return parse_moe_config(file.read(_MAX_BYTES + 1), str(folder / MOE_CONFIG))


def parse_moe_config(data: bytes, where: str) -> MoeConfig:
    """The configuration in these bytes; `where` names it in errors. Raises CheckpointError."""
    if len(data) > _MAX_BYTES:
        raise CheckpointError(
            f"{where} is too large to be the configuration of a mixture of experts."
        )
    fields = parse_json_object(data, where)
    if fields.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{where} has format {safe_name(str(fields['format']))[:20]}, and this hubmerge knows "
            f"{FORMAT}.",
            "Install a newer hubmerge.",
        )
    try:
        config = validate_json(MoeConfig, data)
    except ValidationError as error:
        reason = printable(first_problem(error))[:200]
        raise CheckpointError(
            f"{where} is not the configuration of a mixture of experts: {reason}."
        ) from None
    problems = [f"{where}: {problem}" for problem in _find_problems(config)]
    raise_together(CheckpointError, problems, "Fetch or make the mixture of experts again.")
    return config


def unique_folder_names(labels: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each label, in order: plain characters only, and all different."""
    names: list[str] = []
    for label in labels:
        plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:56].strip("-") or "expert"
        candidates = (plain, *(f"{plain}-{number}" for number in range(2, len(labels) + 1)))
        names.append(next(name for name in candidates if name not in names))
    return tuple(names)


def _find_problems(config: MoeConfig) -> Iterator[str]:
    names = [expert.name for expert in config.experts]
    for name in names:
        if not _EXPERT_NAME.fullmatch(name) or ".." in name:
            yield f"{safe_name(name)!r} is not a valid name of an expert."
    for name, count in Counter(names).items():
        if count > 1:
            yield f"two experts are named {safe_name(name)!r}."
    if not 1 <= config.top_k <= len(names):
        yield f"top_k is {config.top_k}, and there are {len(names)} experts."
    if not config.modules or len(set(config.modules)) < len(config.modules):
        yield "its list of modules is empty, or has one of them twice."
    for module in config.modules:
        if not _MODULE_PATH.fullmatch(module):
            yield f"{safe_name(module)!r} is not a module path."
