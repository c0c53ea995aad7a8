"""What `hubmerge select` chooses over ten seeds, and how far it stays behind longer searches.

    python -m recipes.studies.selection.run train four-full-seed0       # its experts
    python -m recipes.studies.selection.regret measure four-full-seed0  # one setting or several
    python -m recipes.studies.selection.regret write                    # the tables of the page

For each method a setting gives rows: `grid`, the best common step, scale and density of the whole
grid (seeds 0 to 2); every policy of `hubmerge select` with a budget of as many merges as the climb
of `uniform` took before there was a surrogate; `search`, the starts and `coordinate` within that
budget; `long`, the best steps of a search with ten times the budget; every proxy that needs no
data; for LoRA `null space`, which needs inputs without labels; and means of steps, plain and by
training loss. Averages and DARE have the policies only. Everything is stored below
build/selection/regret; another run continues where the last one ended. `write` keeps the rows of
settings that were measured elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from recipes.studies.selection.regret_tables import write_page
from recipes.studies.selection.run import ROOT, SETTINGS, Setting, find_setting

METHODS = ("task_arithmetic", "ties", "average", "dare")
SEARCHED = METHODS[:2]  # also by the grid, a longer search and proxies
# Merges of `uniform` by hill climbing, the mean over seeds 0 to 2. Averages, which have nothing to
# tune, took 12 there, too few for all policies.
BUDGETS = {
    ("full", "task_arithmetic"): 60,
    ("full", "ties"): 83,
    ("full", "dare"): 74,
    ("full", "average"): 60,
    ("lora", "task_arithmetic"): 60,
    ("lora", "ties"): 79,
    ("lora", "dare"): 74,
    ("lora", "average"): 60,
}
FOUR = [setting for setting in SETTINGS if setting.suite == "four"]
WHOLE_GRID_SEEDS = 3
LONGER = 10
RESULTS = ROOT / "regret"


def measure(setting: Setting, method: str, out: Path) -> None:
    """Write all rows of a setting and a method; the parts that are there are left as they are."""
    import torch

    from hubmerge.choosing.merge_selection import SelectRequest
    from hubmerge.flows.select import prepare_selection
    from hubmerge.hub.environment import connect
    from hubmerge.hub.resolve import list_steps
    from hubmerge.refs import parse_ref
    from recipes.studies.selection.regret_rows import RegretRows

    done = json.loads(out.read_text()) if out.exists() else []
    parts = [part for part in _parts(setting, method) if part not in {row["part"] for row in done}]
    if not parts:
        return
    torch.set_num_threads(1)
    budget = BUDGETS[setting.tune, method]
    labels = {"tune": setting.tune, "seed": setting.seed, "method": method, "budget": budget}
    with connect("local") as hub:
        repositories = [setting.repository(task) for task in setting.tasks]
        ends = [f"{to}-es@step{list_steps(hub, f'{to}-es')[-1].step}" for to in repositories]
        refs = tuple(map(parse_ref, [*repositories, *ends]))
        prepared = prepare_selection(hub, SelectRequest(refs, method), lambda *_: None)
        rows = RegretRows(prepared, out.with_suffix(".jsonl"))
        for part in parts:
            for row in rows.measure(part, LONGER * budget if part == "long" else budget):
                print(f"{setting.name} {method} {row['policy']}: {100 * row['validation']:.2f} on "
                      f"validation, {100 * row['test']:.2f} on test, {row['merges']} merges",
                      flush=True)  # fmt: skip
                done.append({**labels, "part": part, **row})
            out.write_text(json.dumps(done, indent=1) + "\n")


def _parts(setting: Setting, method: str) -> list[str]:
    if method not in SEARCHED:
        return ["select"]
    grid = ["grid"] if setting.seed < WHOLE_GRID_SEEDS else []
    lora = ["null-space"] if setting.tune == "lora" else []
    return ["search", "select", "proxies", *grid, "long", "averages", *lora]


def main() -> None:
    """Measure the named settings, by default all, or write the tables."""
    action, *names = sys.argv[1:]
    os.environ["HUBMERGE_HUB"] = "local"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if action == "write":
        write_page(RESULTS)
        return
    for setting in map(find_setting, names) if names else FOUR:
        os.environ["HUBMERGE_HOME"] = str(setting.home.resolve())
        for method in METHODS:
            measure(setting, method, RESULTS / f"{setting.name}-{method}.json")


if __name__ == "__main__":
    main()
