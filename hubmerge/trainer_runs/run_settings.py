"""What files of a run say about its base, its tuning and its seed; all of them are untrusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from hubmerge.errors import HubmergeError, UsageError
from hubmerge.front_matter import card_data
from hubmerge.refs import parse_ref
from hubmerge.weights.adapter_config import parse_base_reference
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG

CARD, CONFIG = "README.md", "config.json"
# Of TRL and other scripts, of LLaMA-Factory, and of axolotl.
_ARGUMENTS = (
    "args.yaml", "training_args.yaml", "training_args.json", "axolotl_config.yml",
    "axolotl_config.yaml", "axolotl.yml", "axolotl.yaml",
)  # fmt: skip
_BASE_KEYS = ("base_model", "model_name_or_path", "model_name")
_AXOLOTL_CARD = re.compile(r"axolotl config.*?```ya?ml\n(.*?)```", re.DOTALL | re.IGNORECASE)
_CARD_SEED = re.compile(r"^- seed: ([0-9]{1,10})$", re.MULTILINE)
_MAX_BYTES = 4 << 20

# The content of a small file by its path; None if there is none.
Read = Callable[[str], bytes | None]


@dataclass(frozen=True)
class NamedValue:
    """A value and the file that it was found in."""

    value: str
    where: str


@dataclass(frozen=True)
class RunSettings:
    """The base that files name, its revision, the seed, and how the weights were tuned.

    `tuning` has the keys that `hubmerge train` records: tune, rank, alpha, rslora, dropout.
    """

    base: NamedValue | None
    base_revision: str | None
    seed: int | None
    tuning: Mapping[str, Any]


def read_run_settings(read_root: Read, read_checkpoint: Read, is_adapter: bool) -> RunSettings:
    """The settings of a run, from the files beside its checkpoints and from one checkpoint."""
    adapter = _parse_json(read_checkpoint(ADAPTER_CONFIG))
    revision = adapter.get("revision")
    bases = list(_bases(read_root, read_checkpoint))
    base = next((named for named in bases if _is_usable(named.value)), bases[0] if bases else None)
    from_adapter = base is not None and base.where == ADAPTER_CONFIG
    return RunSettings(
        base=base,
        base_revision=revision if from_adapter and isinstance(revision, str) else None,
        seed=next(_seeds(read_root, read_checkpoint), None),
        tuning=_adapter_settings(adapter) if is_adapter else {"tune": "full"},
    )


def _bases(read_root: Read, read_checkpoint: Read) -> Iterator[NamedValue]:
    """The bases that files name, the most certain first."""
    data = read_checkpoint(ADAPTER_CONFIG)
    with suppress(HubmergeError):
        name = parse_base_reference(data, ADAPTER_CONFIG)[0] if data else None
        yield from _named(name, ADAPTER_CONFIG)
    for where, fields in _arguments(read_root):
        yield from (named for key in _BASE_KEYS for named in _named(fields.get(key), where))
    for read in (read_root, read_checkpoint):
        card = card_data(_text(read(CARD)))
        if card.get("base_model_relation") not in ("merge", "quantized"):
            value = card.get("base_model")
            yield from _named(value[0] if isinstance(value, list) and len(value) == 1 else value,
                              CARD)  # fmt: skip
    yield from _named(_parse_json(read_checkpoint(CONFIG)).get("_name_or_path"), CONFIG)


def _is_usable(name: str) -> bool:
    """Whether a base is a repository or a folder here; a run may name one of another machine."""
    try:
        ref = parse_ref(name)
    except UsageError:
        return False
    return ref.path is None or ref.path.is_dir()


def _seeds(read_root: Read, read_checkpoint: Read) -> Iterator[int]:
    for _, fields in _arguments(read_root):
        seed = fields.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32:
            yield seed
    for read in (read_root, read_checkpoint):
        if match := _CARD_SEED.search(_text(read(CARD))):
            yield int(match[1])


def _arguments(read: Read) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of arguments that are YAML or JSON, and axolotl's configuration on its card."""
    for name in _ARGUMENTS:
        if fields := _parse_yaml(_text(read(name))):
            yield name, fields
    if match := _AXOLOTL_CARD.search(_text(read(CARD))):
        yield CARD, _parse_yaml(match[1])


def _adapter_settings(adapter: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(adapter.get("peft_type") or "lora").lower()
    tune = {"prefix_tuning": "prefix"}.get(kind, "dora" if adapter.get("use_dora") else kind)
    settings = {
        "rank": adapter.get("r"), "alpha": adapter.get("lora_alpha"),
        "rslora": adapter.get("use_rslora"), "dropout": adapter.get("lora_dropout"),
    }  # fmt: skip
    plain = {k: v for k, v in settings.items() if isinstance(v, int | float)}
    return {"tune": tune[:32]} | (plain if tune in ("lora", "dora") else {})


def _named(value: Any, where: str) -> Iterator[NamedValue]:
    if isinstance(value, str) and value.strip() and len(value) < 500 and value.isprintable():
        yield NamedValue(value.strip(), where)


def _text(data: bytes | None) -> str:
    return (data or b"")[:_MAX_BYTES].decode("utf-8", "replace")


def _parse_json(data: bytes | None) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(data) if data and len(data) < _MAX_BYTES else {}
        return value if isinstance(value, dict) else {}
    return {}


def _parse_yaml(text: str) -> dict[str, Any]:
    """A mapping without aliases, which can expand to gigabytes; empty for anything else."""
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return {}
        value = yaml.safe_load(text)
        return value if isinstance(value, dict) else {}
    return {}
