"""Which validation metric of a run becomes its curve, and the points of the curve.

A curve of a manifest has numbers from 0 to 1 of which more is better: the policies compare them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hubmerge.errors import UsageError
from hubmerge.refs import printable
from hubmerge.trainer_runs.trainer_state import Entry, TrainerState
from hubmerge.training_curve import ValidationPoint

Direction = Literal["higher", "lower"]

_EVAL = "eval_"
_WANTED = re.compile(r"(?P<name>[^:]+)(?::(?P<direction>higher|lower))?")
_TIMES = re.compile(r"_(runtime|samples_per_second|steps_per_second|model_preparation_time)$")
_COUNTS = re.compile(r"_(samples|num_tokens|num_input_tokens_seen)$")
_PERPLEXITY = re.compile(r"perplexity|(?:^|_)ppl(?:$|_)", re.IGNORECASE)
_LOWER = re.compile(
    rf"loss|error|entropy|{_PERPLEXITY.pattern}|(?:^|[_/.-])(?:wer|cer|r?mse|mae)(?:$|[_/.@-])",
    re.IGNORECASE,
)
_HIGHER = re.compile(
    r"accurac|precision|recall|exact_match|bleu|rouge|meteor|ndcg|spearman|pearson|cosine"
    r"|matthews|likelihood|rewards/margins"
    r"|(?:^|[_/.-])(?:acc|f1|mrr|map|auc|iou|miou|ap|em|score)(?:$|[_/.@-])",
    re.IGNORECASE,
)
_OF_ROWS = re.compile(r"(accuracy|exact_match)$")  # shares of rows, which have a standard error
_MAX_NAME = 96
_HINT = "Name it with --curve, as eval_NAME:higher or eval_NAME:lower."


@dataclass(frozen=True)
class CurveMetric:
    """A metric as the curve: its name in the history, which direction is better, and the factor.

    A metric of which less is better becomes exp(-value), a perplexity 1 / value, and one in percent
    is divided by 100, so that all are from 0 to 1. `reason` is why it was chosen.
    """

    name: str
    direction: Direction
    percent: bool = False
    reason: str = ""

    @property
    def formula(self) -> str:
        """What a point of the curve is: eval_accuracy, eval_bleu / 100 or exp(-eval_loss)."""
        if self.direction == "lower":
            return f"1 / {self.name}" if self._is_perplexity else f"exp(-{self.name})"
        return f"{self.name} / 100" if self.percent else self.name

    def convert(self, value: float) -> float:
        """The value of a point, from 0 to 1."""
        if self.direction == "lower":
            return 1 / max(value, 1.0) if self._is_perplexity else math.exp(-max(value, 0.0))
        return value / 100 if self.percent else value

    @property
    def _is_perplexity(self) -> bool:
        return _PERPLEXITY.search(self.name) is not None


def find_metrics(histories: Iterable[Sequence[Entry]]) -> tuple[str, ...]:
    """The validation metrics in histories, by their names; times and counts are none."""
    names = {
        name
        for history in histories
        for entry in history
        for name in entry
        if name.startswith(_EVAL)
        and len(name) <= _MAX_NAME
        and not _TIMES.search(name)
        and not _COUNTS.search(name)
    }
    return tuple(sorted(names))


def choose_curve(
    wanted: str | None, states: Sequence[TrainerState], histories: Sequence[Sequence[Entry]]
) -> CurveMetric | None:
    """The metric of the curve: the one named, else that of the run's best model, else the usual.

    `wanted` is NAME or NAME:higher or NAME:lower. None if there is no metric, or several of which
    none is usual. Raises UsageError for a metric that was not logged, or cannot be a curve.
    """
    names = find_metrics(histories)
    if wanted is not None:
        return _wanted_curve(wanted, names, histories)
    return _best_model_curve(states, names, histories) or _usual_curve(names, histories)


def curve_points(
    curve: CurveMetric, history: Sequence[Entry], step: int
) -> tuple[ValidationPoint, ...]:
    """The curve up to a step, a point for each evaluation; of one repeated, the last counts.

    The loss of a point is the mean training loss since the point before, as far as it was logged.
    """
    entries = [entry for entry in history if entry["step"] <= step]
    evaluated = {int(entry["step"]): entry for entry in entries if curve.name in entry}
    points, previous = list[ValidationPoint](), -1
    for at, entry in sorted(evaluated.items()):
        points.append(
            ValidationPoint(
                step=at,
                loss=_mean_loss(entries, previous, at),
                accuracy=curve.convert(entry[curve.name]),
                count=_row_count(curve, entry),
                lr=_last_lr(entries, at),
            )
        )
        previous = at
    return tuple(points)


def _wanted_curve(
    wanted: str, names: Sequence[str], histories: Sequence[Sequence[Entry]]
) -> CurveMetric:
    match = _WANTED.fullmatch(wanted)
    name = match["name"] if match else wanted
    if name not in names and f"{_EVAL}{name}" in names:
        name = f"{_EVAL}{name}"
    if match is None or name not in names:
        known = f"It has {_listed(names)}." if names else "It has no validation metric."
        raise UsageError(f"The run did not log {printable(name)!r}.", known)
    direction = match["direction"] or _direction_of(name)
    if direction is None:
        raise UsageError(f"Is more or less of {printable(name)} better?", _HINT)
    return _checked(name, "lower" if direction == "lower" else "higher", histories, "--curve")


def _best_model_curve(
    states: Sequence[TrainerState], names: Sequence[str], histories: Sequence[Sequence[Entry]]
) -> CurveMetric | None:
    """The metric whose value at the best step is the best metric of the run."""
    for state in reversed(states):
        for name in names:
            values = {int(e["step"]): e[name] for e in state.history if name in e}
            if state.best_step not in values or values[state.best_step] != state.best_metric:
                continue
            least, most = min(values.values()), max(values.values())
            direction = _direction_of(name)
            if least < most:
                direction = "lower" if state.best_metric == least else "higher"
            if direction and _problem(name, direction, histories) is None:
                return _checked(name, direction, histories, "the run's best model is chosen by it")
    return None


def _usual_curve(names: Sequence[str], histories: Sequence[Sequence[Entry]]) -> CurveMetric | None:
    """An accuracy, the only other metric of which more is better, or the loss."""
    usable: dict[str, Direction] = {
        name: direction
        for name in names
        if (direction := _direction_of(name)) and _problem(name, direction, histories) is None
    }
    higher = [name for name, direction in usable.items() if direction == "higher"]
    for chosen in (["eval_accuracy"], ["eval_rewards/accuracies"], higher, ["eval_loss"], usable):
        if len(chosen) == 1 and (name := next(iter(chosen))) in usable:
            return _checked(name, usable[name], histories, "")
    return None


def _direction_of(name: str) -> Direction | None:
    plain = name.removeprefix(_EVAL)
    if _LOWER.search(plain) and not _HIGHER.search(plain):
        return "lower"
    return "higher" if _HIGHER.search(plain) and not _LOWER.search(plain) else None


def _checked(
    name: str, direction: Direction, histories: Sequence[Sequence[Entry]], reason: str
) -> CurveMetric:
    if problem := _problem(name, direction, histories):
        raise UsageError(problem, "Name another metric with --curve.")
    percent = direction == "higher" and max(_values(name, histories)) > 1
    return CurveMetric(name, direction, percent, reason)


def _problem(name: str, direction: Direction, histories: Sequence[Sequence[Entry]]) -> str | None:
    """Why a metric cannot be a curve from 0 to 1; None if it can."""
    values = _values(name, histories)
    least, most = min(values), max(values)
    if least < 0 or (direction == "higher" and most > 100):
        return (
            f"{printable(name)} goes from {least:g} to {most:g}: a curve needs numbers from 0 to "
            "1, percent, or a loss from 0."
        )
    return None


def _values(name: str, histories: Sequence[Sequence[Entry]]) -> list[float]:
    return [entry[name] for history in histories for entry in history if name in entry]


def _mean_loss(entries: Sequence[Entry], after: int, until: int) -> float | None:
    """Trainer logs the mean loss since its last log, so means are weighted by their steps."""
    logged = sorted((int(e["step"]), e["loss"]) for e in entries if "loss" in e)
    total, count, previous = 0.0, 0, 0
    for step, loss in logged:
        if after < step <= until and step > previous:
            total, count = total + loss * (step - previous), count + step - previous
        previous = step
    return total / count if count else None


def _last_lr(entries: Sequence[Entry], until: int) -> float:
    rates = [e["learning_rate"] for e in entries if "learning_rate" in e and e["step"] <= until]
    return rates[-1] if rates else 0.0


def _row_count(curve: CurveMetric, entry: Entry) -> int:
    """The rows that were evaluated, for a metric that is a share of rows; 0 if they are unknown."""
    prefix = _EVAL  # of the runtime, which is logged with the metric
    rows = entry.get(f"{prefix}runtime", 0) * entry.get(f"{prefix}samples_per_second", 0)
    is_share = _OF_ROWS.search(curve.name) and curve.direction == "higher"
    return round(rows) if is_share and abs(rows - round(rows)) < 0.02 * max(rows, 1) else 0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:12]) + (" ..." if names[12:] else "")
