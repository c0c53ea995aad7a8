"""Progress where no bar can be shown."""

from __future__ import annotations

from hubmerge.cli.progress_lines import ProgressLines, format_amount


def test_a_line_a_minute() -> None:
    lines: list[str] = []
    times = iter([0.0, 1.0, 59.0, 60.0, 119.0, 121.0, 200.0])
    progress = ProgressLines(lines.append, clock=lambda: next(times))
    for done in range(5):
        progress("measuring joint", done, 200)
    progress("hash", 1_500_000_000, 3_000_000_000)
    assert lines == [
        "measuring joint: 2/200",
        "measuring joint: 4/200",
        "hash: 1.5 GB of 3.0 GB",
    ]


def test_an_unknown_total_does_not_look_finished() -> None:
    assert format_amount(37, 0) == "37"
