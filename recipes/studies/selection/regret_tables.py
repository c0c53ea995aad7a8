"""The tables of docs/selection.md for the four tasks, from regret.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from recipes.studies.pages import format_mean, insert_table, markdown_table, mean
from recipes.studies.selection.tables import METHODS, PAGE, POLICIES, Row, accuracies

RESULTS = Path(__file__).with_name("regret.json")
_FOUND = ("search", "select")
_RIVALS = ("last", "best-expert", "early-stop", "proxy", "uniform", "coordinate", "weights")
_START, *_AVERAGES = "start of averages", "plain averages", "averages by loss"
_NO_DATA = ("knee", "rise", "half norm", "half alignment", "inverse norm")
# Each with how its row without tuning is named.
_PROXIES = {**dict.fromkeys(_NO_DATA, "no data"), "null space": "no labels"}


def write_page(results: Path) -> None:
    """Add all rows to regret.json, in place of those of the same settings; write the tables."""
    update_results(
        RESULTS,
        list(chain(*(json.loads(path.read_text()) for path in sorted(results.glob("*.json"))))),
    )
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def update_results(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a file of results, beside those of other settings that it has."""
    measured = set(map(_setting, rows))
    before = json.loads(path.read_text()) if path.exists() else []
    rows = [*rows, *(row for row in before if _setting(row) not in measured)]
    lines = map(json.dumps, sorted(rows, key=_setting))
    path.write_text("\n".join(["[", ",\n".join(lines), "]", ""]))


def render_page(page: str) -> str:
    """The page with its tables of the four tasks replaced by those of regret.json."""
    rows = json.loads(RESULTS.read_text())
    policies = [row for row in rows if row["part"] == "select"]
    for tune in {row["tune"] for row in policies}:
        own = [row for row in policies if row["tune"] == tune]
        page = insert_table(page, f"four-{tune}", accuracies(own))
    page = insert_table(page, "gains", _gains(policies))
    page = insert_table(page, "rivals", _rivals(policies))
    page = insert_table(page, "averages", _averages(rows))
    page = insert_table(page, "regret", _regret(rows))
    return insert_table(page, "proxies", _proxies(rows))


def _gains(rows: Sequence[Row]) -> str:
    """The gain of each policy over the last steps on test, paired by seed."""
    settings = settings_of(rows)
    lines = []
    for policy in POLICIES[1:]:
        line = [policy]
        for tune, method in settings:
            own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
            line.append(format_mean(_gaps(own, POLICIES[0], policy, "test"), sign=True))
        if set(line[1:]) != {"-"}:
            lines.append(line)
    head = [f"{tune} {METHODS[method]}" for tune, method in settings]
    return markdown_table(["gain over last", *head], lines)


def _rivals(rows: Sequence[Row]) -> str:
    """The gain of `select` on test over single policies, paired by seed: mean, standard error."""
    lines = []
    for tune, method in settings_of(rows):
        own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
        gains = [_gaps(own, rival, "select", "test") for rival in _RIVALS]
        cells = [format_mean(gain, sign=True) for gain in gains]
        lines.append([f"{tune} {METHODS[method]}", *cells, str(len(gains[0]))])
    return markdown_table(["select over", *_RIVALS, "seeds"], lines)


def _averages(rows: Sequence[Row]) -> str:
    """The gain of means of steps over the choice that they start from, paired by seed."""
    lines = []
    for tune, method in settings_of(rows, _START):
        own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
        line = [f"{tune} {METHODS[method]}"]
        for split in ("validation", "test"):
            gains = [_gaps(own, _START, name, split) for name in _AVERAGES]
            line += [format_mean(gain, sign=True) for gain in gains]
        lines.append([*line, str(len(gains[0]))])
    head = [f"{name}, {split}" for split in ("validation", "test") for name in ("plain", "by loss")]
    return markdown_table(["", *head, "seeds"], lines)


def _regret(rows: Sequence[Row]) -> str:
    """How far each search stays behind a rival on validation, with the largest over seeds."""
    head = ["", "merges", "behind the grid", "largest", "seeds",
            "behind a longer search", "largest", "seeds"]  # fmt: skip
    lines = []
    for tune, method in settings_of(rows, "search"):
        own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
        for name in _FOUND:
            line = [f"{tune} {METHODS[method]}, {name}", f"{mean(_merges(own, name)):.0f}"]
            for rival in ("grid", "long"):
                gaps = _gaps(own, name, rival)
                worst = f"{100 * max(gaps):+.1f}" if gaps else "-"
                line += [format_mean(gaps, sign=True), worst, str(len(gaps))]
            lines.append(line)
    return markdown_table(head, lines)


def _proxies(rows: Sequence[Row]) -> str:
    """How far each proxy stays behind the longer search on validation, without and with tuning."""
    settings = settings_of(rows, "search")
    lines = []
    for proxy, needs in _PROXIES.items():
        line = [proxy]
        for tune, method in settings:
            own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
            for kind in (needs, "tuned"):
                line.append(format_mean(_gaps(own, f"{proxy} ({kind})", "long")))
        lines.append(line)
    head = [f"{tune} {METHODS[m]}{end}" for tune, m in settings for end in ("", ", tuned")]
    return markdown_table(["proxy", *head], lines)


def settings_of(rows: Sequence[Row], policy: str | None = None) -> list[tuple[str, str]]:
    """The ways of tuning and methods that have rows (of a policy), in the order of the page."""
    known = {(row["tune"], row["method"]) for row in rows if policy in (None, row.get("policy"))}
    return sorted(known, key=lambda setting: (setting[0], [*METHODS].index(setting[1])))


def _setting(row: Row) -> tuple[str, str, int]:
    return row["tune"], row["method"], row["seed"]


def _gaps(rows: Sequence[Row], name: str, rival: str, split: str = "validation") -> list[float]:
    """By how much a rival is better on a split, for each seed that has both."""
    found = {row["seed"]: row[split] for row in rows if row["policy"] == name}
    rivals = {row["seed"]: row[split] for row in rows if row["policy"] == rival}
    return [rivals[seed] - found[seed] for seed in sorted(found.keys() & rivals.keys())]


def _merges(rows: Sequence[Row], name: str) -> list[float]:
    return [row["merges"] for row in rows if row["policy"] == name]
