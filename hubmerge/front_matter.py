"""The front matter of a README, parsed as untrusted YAML.

yaml is imported when one is read: a merge that is there needs none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MAX_BYTES = 256 << 10
_MAX_DEPTH = 40

# Keys of the front matter that become tags of the repository, as on the Hub.
_TAG_KEYS = ("license", "dataset", "language", "base_model")
_KEY_OF_TAG = {"dataset": "datasets"}


class FrontMatterError(Exception):
    """The front matter cannot be read; the message is the reason."""


def card_data(readme: str) -> dict[str, Any]:
    """The front matter as plain JSON values; empty if it is missing or cannot be read."""
    try:
        return _load(readme)
    except FrontMatterError:
        return {}


def card_problem(readme: str) -> str:
    """Why the front matter cannot be read; an empty string if it can."""
    try:
        _load(readme)
    except FrontMatterError as problem:
        return str(problem)
    return ""


def card_body(readme: str) -> str:
    """The text below the front matter; all of it if there is none, or it cannot be read."""
    match = None if card_problem(readme) else _FRONT_MATTER.match(readme)
    return readme[match.end() :] if match else readme


def card_tags(card: dict[str, Any]) -> list[str]:
    """The tags of a card: its own, its library and language, license:x and so on."""
    own = [*texts(card.get("tags")), *texts(card.get("library_name"))]
    own += texts(card.get("pipeline_tag"))
    keyed = [
        text if tag == "language" else f"{tag}:{text}"
        for tag in _TAG_KEYS
        for text in texts(card.get(_KEY_OF_TAG.get(tag, tag)))
    ]
    relation = card.get("base_model_relation")
    related = [f"base_model:{relation}:{base}" for base in texts(card.get("base_model"))]
    return list(dict.fromkeys([*own, *keyed, *(related if relation else [])]))


def _load(readme: str) -> dict[str, Any]:
    match = _FRONT_MATTER.match(readme)
    if match is None:
        return {}
    if len(match[1]) > _MAX_BYTES:
        raise FrontMatterError(f"The front matter is larger than {_MAX_BYTES >> 10} KiB.")
    import yaml

    # Both make plain values only. libyaml's is in the wheels of PyYAML, and ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_yaml(match[1])
        value = yaml.load(match[1], Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FrontMatterError(f"The front matter is not valid YAML: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise FrontMatterError("The front matter must be a mapping of keys to values.")
    return {str(key): _plain(inner) for key, inner in (value or {}).items()}


def _check_yaml(text: str) -> None:
    """Reject YAML that grows when it is loaded: aliases multiply, and deep nesting overflows."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise FrontMatterError("The front matter uses a YAML alias: write the value out.")
        if depth > _MAX_DEPTH:
            raise FrontMatterError(
                f"The front matter is nested more than {_MAX_DEPTH} levels deep."
            )


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | set() | tuple():
            return [_plain(inner) for inner in value]
        case date():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return None
        case bytes():
            return value.decode(errors="replace")
    return value


def texts(value: Any) -> Iterator[str]:
    """The texts and numbers of a value that may be one of them or a list."""
    values = value if isinstance(value, list) else [value]
    return (str(text) for text in values if isinstance(text, str | int | float))
