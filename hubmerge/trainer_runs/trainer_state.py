"""What a trainer_state.json, the log of LLaMA-Factory or a generated card say about a run.

All are untrusted: numbers that are not finite and values of other types are left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_MAX_BYTES = 64 << 20
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})$")
_LOSS_COLUMNS = {"training_loss": "loss", "validation_loss": "eval_loss"}

# One entry of a history: `step` and the numbers that were logged at it.
Entry = Mapping[str, float]


@dataclass(frozen=True)
class TrainerState:
    """The state of a run at `step`, with `history`, what was logged up to it.

    `best_step` and `best_metric` are the best model so far by the metric of the run, whose name is
    not recorded. `stopped_early`: the early-stopping callback ended the run at this step.
    """

    step: int
    history: tuple[Entry, ...] = ()
    max_steps: int | None = None
    save_steps: int | None = None
    best_step: int | None = None
    best_metric: float | None = None
    stopped_early: bool = False


def parse_trainer_state(data: bytes | None) -> TrainerState | None:
    """The state in a trainer_state.json; None if there is none, or it is damaged or too large."""
    fields = _parse_object(data)
    step = _count(fields.get("global_step"))
    if step is None:
        return None
    return TrainerState(
        step=step,
        history=tuple(_entries(fields.get("log_history"))),
        max_steps=_count(fields.get("max_steps")),
        save_steps=_count(fields.get("save_steps")),
        best_step=_best_step(fields),
        best_metric=_number(fields.get("best_metric")),
        stopped_early=_stopped_early(fields.get("stateful_callbacks")),
    )


def parse_trainer_log(data: bytes | None) -> tuple[Entry, ...]:
    """The history in LLaMA-Factory's trainer_log.jsonl; an interrupted line is left out."""
    entries = []
    for line in (data or b"")[:_MAX_BYTES].splitlines():
        fields = _parse_object(line)
        renamed = {**fields, "step": fields.get("current_steps"), "learning_rate": fields.get("lr")}
        entries.append(renamed)
    return tuple(_entries(entries))


def parse_card_table(card: str) -> tuple[Entry, ...]:
    """The table of training results on a card that Trainer wrote: losses and metrics by step."""
    lines = [line.strip() for line in card.splitlines()]
    for number, line in enumerate(lines):
        names = _cells(line)
        if "step" in names and any(name in _LOSS_COLUMNS for name in names):
            rows = (_cells(row) for row in lines[number + 2 :])
            return tuple(_entries(_table_row(names, row) for row in _until_other(rows, len(names))))
    return ()


def _table_row(names: list[str], cells: list[str]) -> dict[str, Any]:
    plain = {"epoch", "step"}
    keys = (_LOSS_COLUMNS.get(n, n if n in plain else f"eval_{n}") for n in names)
    return {key: _as_number(cell) for key, cell in zip(keys, cells, strict=True)}


def _cells(line: str) -> list[str]:
    if not line.startswith("|"):
        return []
    return [cell.strip().lower().replace(" ", "_") for cell in line.strip("|").split("|")]


def _until_other(rows: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for row in rows:
        if len(row) != width:
            return
        yield row


def _as_number(text: str) -> float | None:
    with suppress(ValueError):
        value = float(text)
        return int(value) if value.is_integer() else value
    return None


def _entries(values: Any) -> Iterator[Entry]:
    for value in values if isinstance(values, list | tuple | Iterator) else ():
        fields = value if isinstance(value, dict) else {}
        step = _count(fields.get("step"))
        numbers = {str(k): n for k, v in fields.items() if (n := _number(v)) is not None}
        if step is not None:
            yield {**numbers, "step": step}


def _best_step(fields: Mapping[str, Any]) -> int | None:
    """The best step; older versions have only the path of its folder, on the machine of the run."""
    match = _CHECKPOINT.search(str(fields.get("best_model_checkpoint") or "").replace("\\", "/"))
    return _count(fields.get("best_global_step")) or (int(match[1]) if match else None)


def _stopped_early(callbacks: Any) -> bool:
    callback = callbacks.get("EarlyStoppingCallback") if isinstance(callbacks, dict) else None
    if not isinstance(callback, dict):
        return False
    args, attributes = callback.get("args"), callback.get("attributes")
    if not isinstance(args, dict) or not isinstance(attributes, dict):
        return False
    patience = _count(args.get("early_stopping_patience"))
    counter = _count(attributes.get("early_stopping_patience_counter"))
    return bool(patience and counter is not None and counter >= patience)


def _parse_object(data: bytes | None) -> dict[str, Any]:
    if not data or len(data) > _MAX_BYTES:
        return {}
    with suppress(ValueError, RecursionError):
        value = json.loads(data)
        return value if isinstance(value, dict) else {}
    return {}


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12
    return value if is_count else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return value if math.isfinite(value) else None
    return None
