"""The tokens of a model's tokenizer, read from its files without a library.

Shapes: V tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError
from hubmerge.weights.layout import regular_file

TOKENIZER_JSON = "tokenizer.json"
_TOKENIZER_CONFIG, _ADDED_TOKENS = "tokenizer_config.json", "added_tokens.json"
_MAX_BYTES = 256 << 20
_SAVE_HINT = (
    "Save it as tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
)


@dataclass(frozen=True)
class Vocabulary:
    """Each token's row in the embedding; `added` are tokenizer.json's entries of added tokens."""

    rows: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """The number of rows that the tokens need."""
        return max(self.rows.values(), default=-1) + 1


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokens of the tokenizer in a folder: tokenizer.json, or vocab.json, or vocab.txt.

    Raises CheckpointError if there is none that can be read.
    """
    names = {path.name for path in folder.iterdir()}
    if TOKENIZER_JSON in names:
        return _parse_tokenizer(_read_json(folder, TOKENIZER_JSON), folder / TOKENIZER_JSON)
    if "vocab.json" in names:
        added = _read_json(folder, _ADDED_TOKENS) if _ADDED_TOKENS in names else {}
        return Vocabulary(_checked_rows({**_read_json(folder, "vocab.json"), **added}, folder))
    if "vocab.txt" in names:
        lines = _read_bytes(folder, "vocab.txt").decode("utf-8", "replace").split("\n")
        tokens = lines[:-1] if lines[-1] == "" else lines
        return Vocabulary({token.rstrip("\r"): row for row, token in enumerate(tokens)})
    raise CheckpointError(f"{folder} has no tokenizer that can be read by its tokens.", _SAVE_HINT)


def same_tokenizer_files(first: Path, second: Path) -> bool:
    """Whether two folders have the same tokenizer.json, or both none."""
    files = [folder / TOKENIZER_JSON for folder in (first, second)]
    if not all(file.is_file() for file in files):
        return not any(file.is_file() for file in files)
    return files[0].read_bytes() == files[1].read_bytes()


def extended_tokenizer(folder: Path, tokens: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The tokenizer files of a folder with more added tokens, each with its `id` and `content`.

    Returns the files that change, by name. Raises CheckpointError without a tokenizer.json.
    """
    if not (folder / TOKENIZER_JSON).is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_JSON} to add tokens to.", _SAVE_HINT)
    tokenizer = _read_json(folder, TOKENIZER_JSON)
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or ()), *tokens]
    changed = {TOKENIZER_JSON: tokenizer}
    if (folder / _TOKENIZER_CONFIG).is_file():
        config = _read_json(folder, _TOKENIZER_CONFIG)
        if isinstance(decoder := config.get("added_tokens_decoder"), dict):
            entries = {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in tokens
            }
            changed[_TOKENIZER_CONFIG] = config | {"added_tokens_decoder": decoder | entries}
    if (folder / _ADDED_TOKENS).is_file():
        rows = {token["content"]: token["id"] for token in tokens}
        changed[_ADDED_TOKENS] = _read_json(folder, _ADDED_TOKENS) | rows
    return {
        name: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        for name, content in changed.items()
    }


def _parse_tokenizer(tokenizer: Mapping[str, Any], path: Path) -> Vocabulary:
    model = tokenizer.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(listed, list):  # unigram: pairs of a token and its score
        tokens = {
            pair[0]: row for row, pair in enumerate(listed) if isinstance(pair, list) and pair
        }
    else:
        tokens = dict(listed) if isinstance(listed, dict) else {}
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{path} has no list of added tokens.", _SAVE_HINT)
    added = {str(entry.get("content")): entry for entry in entries}
    rows = tokens | {token: entry.get("id") for token, entry in added.items()}
    if not rows:
        raise CheckpointError(f"{path} lists no tokens.", _SAVE_HINT)
    return Vocabulary(_checked_rows(rows, path), added)


def _checked_rows(rows: Mapping[str, Any], path: Path) -> dict[str, int]:
    if not all(type(row) is int and 0 <= row < 1 << 31 for row in rows.values()):
        raise CheckpointError(f"{path} has a token whose number is not a row.", _SAVE_HINT)
    return dict(rows)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(folder, name))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name} is not readable JSON.", _SAVE_HINT) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name} is not a JSON object.", _SAVE_HINT)
    return content


def _read_bytes(folder: Path, name: str) -> bytes:
    path = regular_file(folder, name)
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is too large to be a tokenizer.", _SAVE_HINT)
    return path.read_bytes()
