"""adapter_config.json of a PEFT adapter: what its weights mean, or why they cannot be merged.

The file is not trusted: its size and the types of its fields are checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter_config_fields import (
    ADAPTER_CONFIG,
    Problem,
    compile_pattern,
    find_config_problems,
)
from hubmerge.weights.header import parse_json_object
from hubmerge.weights.layout import regular_file

_MAX_BYTES = 4 << 20
Pattern = re.Pattern[str]


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter's weights are to be read; `ranks` and `alphas` are by pattern."""

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
    base_class: str = ""
    target_parameters: tuple[str, ...] = ()
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    version: tuple[int, ...] = field(default=(), repr=False)

    def rank_of(self, module: str) -> int:
        """The rank of a module, from the first pattern that matches its name, as in peft."""
        return next((rank for key, rank in self.ranks if key.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r (arXiv 2106.09685), or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        alpha = next((alpha for key, alpha in self.alphas if key.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def token_rows_of(self, module: str) -> tuple[int, ...]:
        """The rows of an embedding that the adapter holds, in its order; empty if there are none.

        `token_rows` are by the end of a module's name; "" is for the one embedding of the model.
        """
        named = (
            rows
            for key, rows in self.token_rows.items()
            if key and f".{module}".endswith(f".{key}")
        )
        return next(named, self.token_rows.get("", ()))

    def is_feedforward(self, module: str) -> bool:
        """Whether IA3 scales the inputs of a module instead of its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return module.endswith(self.feedforward)


def read_adapter_config(folder: Path, label: str) -> tuple[AdapterConfig | None, list[Problem]]:
    """The configuration of an adapter folder, or every reason why the adapter cannot be merged.

    `label` is the adapter's name in these sentences. Raises CheckpointError if there is no
    configuration, or it is not a JSON object.
    """
    fields = _parse_fields(read_config_bytes(folder), str(folder / ADAPTER_CONFIG))
    problems = list(find_config_problems(fields, label))
    return (None if problems else _build_config(fields)), problems


def read_config_bytes(folder: Path) -> bytes:
    """The bytes of the configuration in a folder; raises CheckpointError if it cannot be read.

    Reading stops once the file is known to be too large.
    """
    path = regular_file(folder, ADAPTER_CONFIG)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def parse_base_reference(data: bytes, where: str) -> tuple[str | None, str | None]:
    """The base that a configuration names and its revision, each None if it is not given.

    `where` names the configuration in errors. Raises CheckpointError.
    """
    fields = _parse_fields(data, where)
    return _text_field(fields, "base_model_name_or_path", where), _text_field(
        fields, "revision", where
    )


def _parse_fields(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"{where} is too large to be the configuration of an adapter.")
    return parse_json_object(data, where)


def _text_field(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{where}: its {key} is not a string.")
    return value or None


def _build_config(fields: Mapping[str, Any]) -> AdapterConfig:
    feedforward = fields.get("feedforward_modules") or ()
    return AdapterConfig(
        method=fields["peft_type"],
        rank=fields.get("r", 8),
        alpha=float(fields.get("lora_alpha", 8)),
        ranks=_compile_patterns(fields.get("rank_pattern"), int),
        alphas=_compile_patterns(fields.get("alpha_pattern"), float),
        rslora=bool(fields.get("use_rslora")),
        dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        feedforward=feedforward if isinstance(feedforward, str) else tuple(feedforward),
        target_parameters=tuple(fields.get("target_parameters") or ()),
        base_class=_base_class(fields.get("auto_mapping")),
        token_rows=_token_rows(fields.get("trainable_token_indices")),
        version=_parse_version(fields.get("peft_version")),
    )


def _compile_patterns(
    by_key: Mapping[str, Any] | None, value_type: type
) -> tuple[tuple[Pattern, Any], ...]:
    return tuple((compile_pattern(key), value_type(value)) for key, value in (by_key or {}).items())


def _base_class(auto_mapping: Any) -> str:
    """The class of the model that was adapted, which peft notes if it has no task type."""
    name = auto_mapping.get("base_model_class") if isinstance(auto_mapping, dict) else None
    return name if isinstance(name, str) else ""


def _parse_version(text: object) -> tuple[int, ...]:
    match = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", str(text))
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def _token_rows(value: Any) -> dict[str, tuple[int, ...]]:
    """Row numbers by module; a list is for the embedding, whatever its name."""
    by_module = value if isinstance(value, dict) else {"": value} if value else {}
    return {name: tuple(rows) for name, rows in by_module.items()}
