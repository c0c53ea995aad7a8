"""What a card and a terminal write about the gain of a selection and its controls."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hubmerge.cards.selection import describe_outcome
from hubmerge.cli.selection_tables import describe_conclusion, selection_tables
from hubmerge.lock import Control, CrossFitted, Lock, Pick
from hubmerge.lock_file import parse_lock

from .builders import lock
from .test_upcycling_card import merge_card

Interval = tuple[float, float, float]
GAIN, LOSS = (0.021, 0.012, 0.03), (-0.023, -0.038, -0.008)


def judged(
    gain: tuple[float, float, float], base: tuple[float, float, float], outcome: str
) -> Lock:
    """A lock with a cross-fitted gain of its choice, and two controls."""
    plain = lock()
    picks = tuple(
        pick if pick.policy != plain.chosen else _with_gain(plain, gain) for pick in plain.picks
    )
    steps = tuple(expert.step or 0 for expert in plain.pick().experts)
    return lock(
        picks=picks,
        outcome=outcome,
        conclusive=outcome == "gain",
        cross_fit=CrossFitted(("coordinate", "uniform"), (steps, steps), 0.61, 0.61 - gain[0]),
        controls=(
            Control("base", "hub/base@main", 0.61 - base[0], base),
            Control("without", plain.tasks[0].id, 0.6, (0.01, -0.01, 0.03)),
        ),
        left_out=("expert", "random 4 8"),
        predicted_gain=0.004,
    )


def _with_gain(plain: Lock, gain: Interval | None) -> Pick:
    return replace(plain.pick(), gain=gain)


def conclusion(selection: Lock) -> str:
    return describe_conclusion(selection, 60.0, Path("a.lock"))


def test_a_gain_a_loss_and_a_gain_over_nothing_are_named() -> None:
    gain, loss = judged(GAIN, GAIN, "gain"), judged(LOSS, GAIN, "loss")
    worthless = judged(GAIN, LOSS, "inconclusive")
    assert "+2.1 [+1.2, +3.0] points over last" in conclusion(gain)
    assert conclusion(loss).startswith("A loss: ")
    assert conclusion(worthless).startswith("No gain: ")
    assert "-2.3 [-3.8, -0.8] over the base" in conclusion(worthless)
    assert "beyond the noise" in describe_outcome(gain)
    assert describe_outcome(loss).startswith("**The selection is a loss:**")
    assert describe_outcome(worthless).startswith("**No gain:**")


def test_a_gain_that_was_not_measured_is_said_to_be_so() -> None:
    plain = lock()
    picks = tuple(
        _with_gain(plain, None) if pick.policy == plain.chosen else pick for pick in plain.picks
    )
    unknown = lock(picks=picks, outcome="inconclusive", conclusive=False)
    assert "was not measured" in conclusion(unknown)
    assert "inconclusive" in describe_outcome(unknown)


def test_a_choice_that_is_the_rivals_own_merge_needs_no_more_examples() -> None:
    plain = lock()
    last = plain.pick("last")
    same = replace(plain.pick(), experts=last.experts, params=last.params, gain=(0.0, 0.0, 0.0))
    picks = tuple(same if pick.policy == plain.chosen else pick for pick in plain.picks)
    selection = lock(picks=picks, outcome="inconclusive", conclusive=False)
    assert conclusion(selection).startswith("Inconclusive: nothing beats last on validation, by ")


def test_the_card_shows_the_controls() -> None:
    card = merge_card(judged(GAIN, GAIN, "gain"))
    assert "### What the choice adds" in card
    assert "| the base | 58.90 | +2.10 (+1.20 to +3.00) |" in card
    assert "without the expert of" in card
    assert "would add +0.40 points" in card
    assert "left out these controls: the best single expert; random steps, tuned: 4 8." in card
    assert "What the choice adds" not in merge_card(lock())


def test_the_terminal_shows_the_controls() -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(selection_tables(judged(GAIN, GAIN, "gain")))
    text = file.getvalue()
    assert "the base" in text
    assert "+2.1 [+1.2, +3.0]" in text
    assert "on rows that did not choose" in text
    assert "the best single expert; random steps, tuned: 4 8." in text


def test_the_evidence_survives_the_file_and_old_locks_are_unchanged() -> None:
    written = judged(GAIN, LOSS, "inconclusive")
    assert parse_lock(written.to_bytes(), "a.lock") == written
    old = lock().to_bytes()
    assert b"cross_fit" not in old
    assert b"controls" not in old
    assert parse_lock(old, "old.lock").cross_fit is None
