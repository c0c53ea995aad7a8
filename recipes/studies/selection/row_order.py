"""Whether races would end earlier if they evaluated the informative rows first.

    python -m recipes.studies.selection.row_order    # row_order.json and the table of the page

Simulated on the complete trials in the logs of build/selection/regret, for seeds with the whole
grid; nothing is evaluated. Trials come in random order, and each races against the best of those
before it, as in hubmerge/selection/search.py. In the fixed order the rows so far stand for all.
Informative first are the rows on which the first 20 or 40 trials differ most. They do not stand for
the others, which therefore count as equal on average, with the variance of the first trials.
Shapes: T trials, N rows of all tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubmerge.trials import SELECTION_SPLIT, SINGLE_EXPERT, TrialLog
from recipes.studies.pages import format_mean, insert_table, markdown_table
from recipes.studies.selection.regret_tables import settings_of, update_results
from recipes.studies.selection.run import ROOT
from recipes.studies.selection.tables import METHODS, PAGE, Row

Floats = NDArray[np.float64]
Order = NDArray[np.int64]
RESULTS = Path(__file__).with_name("row_order.json")
_FIRST = (20, 40)  # trials that the informative rows are known from
_SHARES, _BEHIND = (0.125, 0.25, 0.5), 2.0  # as in a search
_DRAWS = 5  # of the order of trials and of rows
_FLOOR = 0.25  # of the mean variance: a row is never taken for certain after a few trials


def race(lead: Floats, order: Order, prior: Floats | None = None) -> int:
    """How many rows are evaluated until a challenger is given up; all N if it is not.

    `lead` [N] is by how much it is better on each row. Without a `prior` the rows so far stand for
    all; with one [N], the others have the mean 0 and these variances.
    """
    for share in _SHARES:
        count = int(share * len(lead))
        seen = lead[order[:count]]
        if prior is None:
            mean, variance = seen.mean(), seen.var(ddof=1) / count
        else:
            mean = seen.sum() / len(lead)
            variance = prior[order[count:]].sum() / len(lead) ** 2
        if mean + _BEHIND * np.sqrt(variance) < 0:
            return count
    return len(lead)


def lead_variance(first: Floats) -> Floats:
    """The variance [N] of the lead between two trials, from the first trials [T, N]."""
    share, count = first.mean(axis=0), len(first)
    variance: Floats = 2 * share * (1 - share) * count / (count - 1)
    return np.maximum(variance, _FLOOR * variance.mean())


def simulate(trials: Floats, seed: int) -> Iterator[tuple[str, int, bool]]:
    """Race trials [T, N] in one random order: name of the order, rows, and whether it is better."""
    generator = np.random.default_rng(seed)
    trials = trials[generator.permutation(len(trials))]
    fixed = generator.permutation(trials.shape[1])
    orders: dict[str, tuple[Order, Floats | None]] = {"fixed": (fixed, None)}
    for count in _FIRST:
        prior = lead_variance(trials[:count])
        informative = fixed[np.argsort(-prior[fixed], kind="stable")]
        orders[f"informative of {count}"] = informative, prior
    for number in range(max(_FIRST), len(trials)):
        lead = trials[number] - trials[trials[:number].mean(axis=1).argmax()]
        for name, (order, prior) in orders.items():
            yield name, race(lead, order, prior), bool(lead.mean() > 0)


def measure(log: Path) -> list[Row]:
    """The share of rows, and the better challengers given up, for each order on one log."""
    merges = [t for t in TrialLog(log).read() if t.is_complete and t.method != SINGLE_EXPERT]
    tasks = [[t.rows[k].numbers for k in sorted(t.rows)]
             for t in merges if t.split == SELECTION_SPLIT]  # fmt: skip
    trials = np.array(tasks).reshape(len(tasks), -1)
    races = [race for seed in range(_DRAWS) for race in simulate(trials, seed)]
    rows = []
    for name in dict.fromkeys(name for name, *_ in races):
        counts, better = zip(*(race[1:] for race in races if race[0] == name), strict=True)
        shares = np.array(counts) / trials.shape[1]
        share, lost = round(float(shares.mean()), 4), int((shares[list(better)] < 1).sum())
        rows.append({"order": name, "trials": len(trials), "share": share, "better": sum(better),
                     "given up": lost})  # fmt: skip
    return rows


def render_page(page: str) -> str:
    """The page with its table replaced by that of row_order.json."""
    rows = json.loads(RESULTS.read_text())
    names = list(dict.fromkeys(row["order"] for row in rows))
    head = ["", "seeds", *(f"{name}{end}" for name in names for end in (", % of rows", ", lost"))]
    lines = []
    for tune, method in settings_of(rows):
        own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
        line = [f"{tune} {METHODS[method]}", str(len({row["seed"] for row in own}))]
        for group in ([row for row in own if row["order"] == name] for name in names):
            lost, better = (sum(row[key] for row in group) for key in ("given up", "better"))
            line += [format_mean([row["share"] for row in group]), f"{lost} of {better}"]
        lines.append(line)
    return insert_table(page, "row-order", markdown_table(head, lines))


def main() -> None:
    """Simulate all logs of seeds with the whole grid; write and print the table."""
    rows = []
    for path in sorted((ROOT / "regret").glob("*.json")):
        regret = json.loads(path.read_text())
        if any(row["part"] == "grid" for row in regret):
            labels = {key: regret[0][key] for key in ("tune", "seed", "method")}
            rows += [{**labels, **row} for row in measure(path.with_suffix(".jsonl"))]
    update_results(RESULTS, rows)
    page = render_page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    print(page.partition("<!-- row-order:begin -->")[2].partition("<!--")[0].strip())


if __name__ == "__main__":
    main()
