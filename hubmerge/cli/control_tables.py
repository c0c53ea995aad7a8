"""The table of a selection's controls, and how its gains were measured, in words."""

from __future__ import annotations

from rich.console import RenderableType

from hubmerge.cards.controls import describe_control, describe_left_out
from hubmerge.cli.tables import format_percent, make_table, text_line
from hubmerge.lock import Lock


def control_tables(lock: Lock) -> list[RenderableType]:
    """The controls, and sentences on how they were measured and what was left out."""
    fit = lock.cross_fit
    if fit is None:
        return []
    halves = " and ".join(" ".join(map(str, steps)) for steps in fit.steps)
    lines = [
        f"Gains are measured on rows that did not choose: chosen on half of the rows ({halves}), "
        f"compared on the other half, both ways: {format_percent(fit.accuracy)} % against "
        f"{format_percent(fit.rival)} % of {lock.rival}. The choice itself is made on all rows.",
    ]
    if fit.seed_stderr is not None:
        lines.append(
            f"The interval of {lock.chosen} includes {100 * fit.seed_stderr:.1f} points of "
            "standard error between training seeds."
        )
    if lock.predicted_gain is not None:
        lines.append(
            f"One more expert like these would add {100 * lock.predicted_gain:.1f} points, a "
            "prediction of the merging scaling law."
        )
    if lock.left_out:
        lines.append(f"The budget left out these controls: {describe_left_out(lock)}.")
    return [_controls_table(lock), *(text_line(line) for line in lines)]


def format_interval(gain: tuple[float, float, float]) -> str:
    """A gain and its interval in points: "+1.2 [+0.3, +2.1]"."""
    value, low, high = (100 * part for part in gain)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _controls_table(lock: Lock) -> RenderableType:
    rows = [
        (
            describe_control(lock, control.kind, control.name),
            format_percent(control.accuracy),
            format_interval(control.gain),
        )
        for control in lock.controls
    ]
    columns = ("compared with", "validation %>", "gain of the choice>")
    return make_table(columns, rows, title="controls")
