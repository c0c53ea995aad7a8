"""The history of a run that is beside its checkpoints: in a state, in a log, or on the card."""

from __future__ import annotations

from collections.abc import Sequence

from hubmerge.hub.commit_contents import TRAINER_STATE
from hubmerge.hub.mining import LAST_CHECKPOINT
from hubmerge.trainer_runs.run_settings import CARD, Read
from hubmerge.trainer_runs.trainer_state import (
    Entry,
    TrainerState,
    parse_card_table,
    parse_trainer_log,
    parse_trainer_state,
)

TRAINER_LOG = "trainer_log.jsonl"


def state_beside(read_root: Read) -> TrainerState | None:
    """The state at the root of a run, or that of the last checkpoint in a repository."""
    names = (TRAINER_STATE, f"{LAST_CHECKPOINT}/{TRAINER_STATE}")
    states = (parse_trainer_state(read_root(name)) for name in names)
    return next((state for state in states if state), None)


def written_history(read_root: Read) -> tuple[Entry, ...]:
    """The history in such a state, else in LLaMA-Factory's log, else in the table on the card."""
    state = state_beside(read_root)
    if state and state.history:
        return state.history
    card = (read_root(CARD) or b"").decode("utf-8", "replace")
    return parse_trainer_log(read_root(TRAINER_LOG)) or parse_card_table(card)


def epoch_steps(history: Sequence[Entry]) -> dict[int, int]:
    """The step at the end of each epoch that a history has."""
    ends = [entry for entry in history if float(entry.get("epoch", 0.5)).is_integer()]
    return {int(entry["epoch"]): int(entry["step"]) for entry in ends if entry["step"] > 0}
