"""Which metric of a run becomes its curve, and what its points are, worked by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.trainer_runs.curves import choose_curve, curve_points, find_metrics
from hubmerge.trainer_runs.trainer_state import (
    TrainerState,
    parse_card_table,
    parse_trainer_log,
    parse_trainer_state,
)
from tests.trainer_runs.layouts import early_stopping, history, state

LOSSES = {2: 1.0, 4: 0.5, 8: 0.75}


def read(text: str) -> TrainerState:
    found = parse_trainer_state(text.encode())
    assert found is not None
    return found


def choose(log: list[dict[str, Any]], wanted: str | None = None, **fields: Any) -> str | None:
    found = read(state(8, log, **fields))
    curve = choose_curve(wanted, [found], [found.history])
    return curve.formula if curve else None


@pytest.mark.parametrize(
    ("metrics", "wanted", "fields", "formula"),
    [
        ({}, None, {}, "exp(-eval_loss)"),
        ({"accuracy": (0.1, 0.2, 0.3)}, None, {}, "eval_accuracy"),
        ({"bleu": (10, 20, 30)}, None, {}, "eval_bleu / 100"),
        ({"f1": (0.1, 0.2, 0.3), "recall": (0.1, 0.2, 0.3)}, None, {}, "exp(-eval_loss)"),
        ({"f1": (0.1, 0.2, 0.3)}, "loss", {}, "exp(-eval_loss)"),
        ({"thing": (0.1, 0.2, 0.3)}, "eval_thing:higher", {}, "eval_thing"),
        ({"wer": (0.3, 0.2, 0.1)}, "wer", {}, "exp(-eval_wer)"),
        ({"perplexity": (30, 20, 10)}, "perplexity", {}, "1 / eval_perplexity"),
        ({"accuracy": (0.1, 0.2, 0.3)}, None, {"best_global_step": 4, "best_metric": 0.5},
         "exp(-eval_loss)"),
        ({"thing": (0.1, 0.4, 0.3)}, None,
         {"best_model_checkpoint": "/x/checkpoint-4", "best_metric": 0.4}, "eval_thing"),
        ({"rewards/accuracies": (0.1, 0.4, 0.3), "rewards/margins": (-1, 0, 1)}, None, {},
         "eval_rewards/accuracies"),
    ],
)  # fmt: skip
def test_the_chosen_metric(
    metrics: dict[str, tuple[float, ...]],
    wanted: str | None,
    fields: dict[str, Any],
    formula: str,
) -> None:
    log = history(LOSSES, **{n: dict(zip(LOSSES, v, strict=True)) for n, v in metrics.items()})
    assert choose(log, wanted, **fields) == formula


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("eval_f1", "did not log 'eval_f1'"),
        ("thing", "Is more or less of eval_thing better"),
        ("thing:higher", "eval_thing goes from -1 to 1"),
        ("eval_loss:up", "did not log"),
    ],
)
def test_metrics_that_cannot_be_a_curve(wanted: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(history(LOSSES, thing={2: -1, 4: 0, 8: 1}), wanted)


def test_points_are_converted_and_cut() -> None:
    log = history(LOSSES, accuracy={2: 0.25, 4: 0.5, 8: 0.75})
    log.insert(1, {"step": 1, "loss": 4.0})
    found = read(state(8, log))
    losses = choose_curve("eval_loss", [found], [found.history])
    assert losses is not None
    points = curve_points(losses, found.history, 5)
    assert [(p.step, p.accuracy, p.lr) for p in points] == [
        (2, math.exp(-1), 5e-4), (4, math.exp(-0.5), 2.5e-4),
    ]  # fmt: skip
    assert points[0].loss == (4.0 + 2.0) / 2  # a step each
    assert points[0].count == 0
    accuracies = choose_curve("accuracy", [found], [found.history])
    assert accuracies is not None
    assert [p.count for p in curve_points(accuracies, found.history, 8)] == [8, 8, 8]


def test_states_are_untrusted() -> None:
    for data in (None, b"", b"[]", b"{", b'{"global_step": "2"}', b'{"global_step": true}',
                 b'{"global_step": -1}', b"[" * 100_000):  # fmt: skip
        assert parse_trainer_state(data) is None
    odd = json.dumps({"global_step": 2, "log_history": [1, {}, {"step": 2, "eval_loss": None,
                      "eval_f1": True, "eval_x": 10**400, "eval_ok": 0.5}]})  # fmt: skip
    found = read(odd.replace('"eval_loss": null', '"eval_loss": NaN'))
    assert found.history == ({"step": 2, "eval_ok": 0.5},)
    assert find_metrics([found.history]) == ("eval_ok",)
    assert read(state(4, stateful_callbacks=early_stopping(2))).stopped_early
    assert not read(state(4, stateful_callbacks=early_stopping(1))).stopped_early
    assert not read(state(4, stateful_callbacks=[1])).stopped_early


def test_other_logs() -> None:
    card = """# out
| Training Loss | Epoch | Step | Validation Loss | Rouge 1 |
|:-------------:|:-----:|:----:|:---------------:|:---:|
| No log        | 0     | 0    | 3.4765          | 1.5 |
| 3.4743        | 0.5   | 2    | 3.4727          | 2   |

### Framework versions
"""
    assert parse_card_table(card) == (
        {"epoch": 0, "step": 0, "eval_loss": 3.4765, "eval_rouge_1": 1.5},
        {"loss": 3.4743, "epoch": 0.5, "step": 2, "eval_loss": 3.4727, "eval_rouge_1": 2},
    )
    assert parse_card_table("| Step |\n") == ()
    log = b'{"current_steps": 2, "total_steps": 4, "eval_loss": 1.5, "lr": 0.1}\n{"current'
    (entry,) = parse_trainer_log(log)
    assert (entry["step"], entry["eval_loss"], entry["learning_rate"]) == (2, 1.5, 0.1)
