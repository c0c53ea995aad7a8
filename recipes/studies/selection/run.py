"""Compare the policies for choosing steps: their choices on validation, and the test accuracy.

    python -m recipes.studies.selection.run train     # the experts, published to an embedded Hub
    python -m recipes.studies.selection.run choose    # each policy alone: eight tasks, and texts
    python -m recipes.studies.selection.run write     # results.json, tables of docs/selection.md

`regret` measures the four tasks over ten seeds, with a budget for all policies. Everything is
stored in build/selection; another run continues where the last one ended. The test split is read
once, for the choices that were made on validation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.studies.selection.tables import write_page

ROOT = Path(os.environ.get("SELECTION_ROOT") or "build/selection")
MINILM = Path("build/minilm-recipe")
BASE = "hubmerge/tiny-clip"
FOUR = ("mnist", "fashion", "hebrew", "texture")
EIGHT = (*FOUR, "housenum", "latin", "greek", "kana")
TEXT = ("movie", "source", "noun", "verb", "emoji")
METHODS = ("average", "task_arithmetic", "ties", "dare")
POLICIES = (
    "last", "best-expert", "proxy", "uniform", "coordinate", "early-stop", "weights", "joint",
    "average-last", "greedy-soup", "rescale",
)  # fmt: skip
STEPS = 2048
TUNING = {
    "full": ("--lr", "5e-4", "--weight-decay", "0.1"),
    "lora": ("--tune", "lora", "--rank", "8", "--lr", "2e-3", "--weight-decay", "0"),
}
SHARED = (
    *("--base", BASE, "--batch", "32", "--clip", "1.0", "--no-augment", "--warmup-steps", "50"),
    *("--steps", str(STEPS), "--push-every", "2^k"),
)
CONSTANT = ("--schedule", "constant", "--evaluate-every", "32")
# The paper's rule; its runs end after 145 to 300 steps.
STOPPED = ("--early-stop", "plateau", "--min-lr", "0.05", "--evaluate-every", "5")


@dataclass(frozen=True)
class Setting:
    """A suite of tasks, a way of tuning and a seed: all tasks are trained with it."""

    suite: str
    tune: str
    seed: int

    @property
    def tasks(self) -> tuple[str, ...]:
        return {"four": FOUR, "eight": EIGHT, "text": TEXT}[self.suite]

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.tune}-seed{self.seed}"

    @property
    def home(self) -> Path:
        """Where the Hub of its experts is; those for text are recipes/studies/minilm's."""
        return MINILM / "home" if self.suite == "text" else ROOT / "home"

    def repository(self, task: str) -> str:
        """The repository of a run at a constant rate; that of the stopped run ends with -es."""
        return (
            f"me/{self.tune}-{task}" if self.suite == "text" else f"s{self.seed}/{task}-{self.tune}"
        )

    @property
    def policies(self) -> tuple[str, ...]:
        """A pretrained encoder takes seconds a merge, so its suite leaves the longest ones out."""
        return POLICIES[:5] if self.suite == "text" else POLICIES

    @property
    def methods(self) -> tuple[str, ...]:
        return METHODS if self.suite == "four" else METHODS[1:3]


SETTINGS = [
    *(Setting("four", tune, seed) for seed in range(10) for tune in TUNING),
    *(Setting(suite, tune, 0) for suite in ("eight", "text") for tune in TUNING),
]


def find_setting(name: str) -> Setting:
    """The setting of a name such as `four-full-seed3`, also of seeds that SETTINGS lacks."""
    match = re.fullmatch(r"(four|eight|text)-(full|lora)-seed(\d+)", name)
    if match is None:
        sys.exit(f"There is no setting {name}; write one such as four-full-seed0.")
    return Setting(match[1], match[2], int(match[3]))


def train(setting: Setting) -> None:
    """Every task of a setting: one run at a constant rate, and one that stops early."""
    for task in setting.tasks:
        for end, shape in (("", CONSTANT), ("-es", STOPPED)):
            to = setting.repository(task) + end
            command = [sys.executable, "-m", "hubmerge", "train", "--task", f"mini-{task}"]
            command += ["--to", to, *SHARED, *TUNING[setting.tune], *shape]
            subprocess.run([*command, "--seed", str(setting.seed)], check=True)


def choose(setting: Setting, method: str) -> Iterator[dict[str, Any]]:
    """What every policy chooses for a method, what it asked for to find it, and how good it is."""
    import torch

    from hubmerge.choosing.merge_selection import SelectRequest
    from hubmerge.flows.select import prepare_selection
    from hubmerge.hub.environment import connect
    from hubmerge.hub.resolve import list_steps
    from hubmerge.refs import parse_ref
    from recipes.studies.selection.trial import measure_policies

    torch.set_num_threads(1)
    with connect("local") as hub:
        repositories = [setting.repository(task) for task in setting.tasks]
        stopped = [] if setting.suite == "text" else [f"{to}-es" for to in repositories]
        ends = [f"{to}@step{list_steps(hub, to)[-1].step}" for to in stopped]
        refs = tuple(map(parse_ref, [*repositories, *ends]))
        prepared = prepare_selection(hub, SelectRequest(refs, method), lambda *_: None)
        yield from measure_policies(prepared, ROOT / "trials.jsonl", setting.policies)


def main() -> None:
    """Run one of the three actions, for all settings or the named ones."""
    action, *names = sys.argv[1:]
    os.environ["HUBMERGE_HUB"] = "local"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = SETTINGS if action == "train" else [s for s in SETTINGS if s.suite != "four"]
    for setting in map(find_setting, names) if names else known:
        os.environ["HUBMERGE_HOME"] = str(setting.home.resolve())
        if action == "train" and setting.suite != "text":
            train(setting)
        for method in setting.methods if action == "choose" else ():
            out = ROOT / "results" / f"{setting.name}-{method}.json"
            if out.exists():
                continue
            labels = {"suite": setting.suite, "tune": setting.tune, "seed": setting.seed}
            rows = [{**labels, "method": method, **row} for row in choose(setting, method)]
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows, indent=1) + "\n")
            print(out, flush=True)
    if action == "write":
        write_page(ROOT / "results")


if __name__ == "__main__":
    main()
