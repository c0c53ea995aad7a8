"""adapter_config.json of a PEFT adapter: what its weights mean, or why they cannot be merged.

Read as if it were written by an enemy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter_config_fields import FILE, Problem, pattern, problems_of
from hubmerge.weights.header import load_object
from hubmerge.weights.layout import plain_file

_BYTES = 4 << 20
Pattern = re.Pattern[str]


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says of its weights; `ranks` and `alphas` by pattern."""

    method: Literal["LORA", "IA3"]
    rank: int = 8
    alpha: float = 8.0
    ranks: tuple[tuple[Pattern, int], ...] = ()
    alphas: tuple[tuple[Pattern, float], ...] = ()
    rslora: bool = False
    dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    feedforward: str | tuple[str, ...] = ()
    version: tuple[int, ...] = field(default=(), repr=False)

    def rank_of(self, module: str) -> int:
        """The rank of a module by its name, as peft finds it: the first pattern that matches."""
        return next((rank for key, rank in self.ranks if key.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r (arXiv 2106.09685), or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        alpha = next((alpha for key, alpha in self.alphas if key.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def is_feedforward(self, module: str) -> bool:
        """Whether IA3 stretches the inputs of a module and not its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return module.endswith(self.feedforward)


def read_config(folder: Path, who: str) -> tuple[AdapterConfig | None, list[Problem]]:
    """The configuration of an adapter folder, or every reason why `who` cannot be merged.

    Raises CheckpointError if there is none, or it is not what it should be at all.
    """
    said = _load(config_bytes(folder), str(folder / FILE))
    problems = list(problems_of(said, who))
    return (None if problems else _config(said)), problems


def config_bytes(folder: Path) -> bytes:
    """The configuration in a folder as it lies there; raises CheckpointError if it cannot be read.

    No more is read than is needed to see that it is too large.
    """
    path = plain_file(folder, FILE)
    try:
        with path.open("rb") as file:
            return file.read(_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def named_base(data: bytes, where: str) -> tuple[str | None, str | None]:
    """The base that a configuration names and its revision, each None where it is silent.

    `where` is the name that errors give it. Raises CheckpointError.
    """
    said = _load(data, where)
    return _text(said, "base_model_name_or_path", where), _text(said, "revision", where)


def _load(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > _BYTES:
        raise CheckpointError(f"{where} is too large to be the configuration of an adapter.")
    return load_object(data, where)


def _text(said: Mapping[str, Any], key: str, where: str) -> str | None:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{where}: its {key} is not a text.")
    return value or None


def _config(said: Mapping[str, Any]) -> AdapterConfig:
    feedforward = said.get("feedforward_modules") or ()
    return AdapterConfig(
        method=said["peft_type"],
        rank=said.get("r", 8),
        alpha=float(said.get("lora_alpha", 8)),
        ranks=_patterns(said.get("rank_pattern"), int),
        alphas=_patterns(said.get("alpha_pattern"), float),
        rslora=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
        lora_bias=bool(said.get("lora_bias")),
        fan_in_fan_out=bool(said.get("fan_in_fan_out")),
        feedforward=feedforward if isinstance(feedforward, str) else tuple(feedforward),
        version=_version(said.get("peft_version")),
    )


def _patterns(said: Mapping[str, Any] | None, kind: type) -> tuple[tuple[Pattern, Any], ...]:
    return tuple((pattern(key), kind(value)) for key, value in (said or {}).items())


def _version(text: object) -> tuple[int, ...]:
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", str(text))
    return tuple(int(part or 0) for part in found.groups()) if found else ()
