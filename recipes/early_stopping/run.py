"""Two rules of early stopping, side by side: where they stop, and what the stops are worth merged.

    python -m recipes.early_stopping.run --out build/early-stopping

Trains what is not trained yet, measures what is not measured yet, and writes results.json beside
this file. Scales, the best common step and the defaults are chosen on validation; with --test the
points of TESTED are then measured on the test split too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hubmerge.hub.environment import connect
from recipes.early_stopping.measure import Laboratory
from recipes.early_stopping.runs import EVERY, LAST, TASKS, Run, Setting
from recipes.early_stopping.stops import RULES

RESULTS = Path(__file__).with_name("results.json")
SETTINGS = (Setting("full", 0), Setting("lora", 0), Setting("full", 1))
COMMON = (100, 150, 200, 300, 400, 500, LAST)
GRID: Mapping[str, tuple[Mapping[str, float], ...]] = {
    "average": ({},),
    "task_arithmetic": tuple({"scale": scale} for scale in (0.25, 0.35, 0.5, 0.75)),
    "ties": tuple({"scale": scale, "density": 0.2} for scale in (0.3, 0.5, 0.75, 1.0, 1.25, 1.5)),
    "dare": tuple({"scale": scale, "density": 0.2} for scale in (0.1, 0.15, 0.25, 0.35, 0.5, 0.75)),
}
LAST_STEP, BEST_COMMON = "last step", "best common step"
CONSTANT, COOLED = "{}, at constant rate", "{}, cooled down"
PLATEAU, NOISE = "plateau 1/16", "noise 1 x 20"
"""The defaults, as validation chose them."""
COOLED_STOPS = (PLATEAU, "noise 1 x 10", NOISE)
"""Stops that are also reached by a constant rate with a cool-down in the last fifth."""
TESTED = (
    *("plateau 1/4", PLATEAU, "plateau 1/64", CONSTANT.format(PLATEAU)),
    *("noise 2 x 3", "noise 1 x 3", "noise 1 x 10", NOISE, "noise 0.5 x 20"),
    *map(COOLED.format, COOLED_STOPS),
    LAST_STEP,
)
"""The defaults, the extremes, and what they are held against."""


@dataclass(frozen=True)
class Choice:
    """A step for each task, on the runs of one shape."""

    shape: str
    steps: tuple[int, ...]

    def folders(self, root: Path, setting: Setting) -> tuple[Path, ...]:
        pairs = zip(TASKS, self.steps, strict=True)
        return tuple(Run(root, setting, self.shape, task).step(step) for task, step in pairs)


def train_all(root: Path, setting: Setting) -> None:
    """Train what a setting lacks."""
    for task in TASKS:
        Run(root, setting, "plateau", task).train()
        Run(root, setting, "constant", task).train()
        stops = {stop(root, setting, name, task) for name in COOLED_STOPS}
        Run(root, setting, "cooled", task).train(stops)


def stop(root: Path, setting: Setting, name: str, task: str) -> int:
    """The step at which a rule stops a task."""
    return RULES[name].stop(Run(root, setting, RULES[name].shape, task).curve())


def choices(root: Path, setting: Setting) -> dict[str, Choice]:
    """What is compared, by name."""
    stops = {name: tuple(stop(root, setting, name, task) for task in TASKS) for name in RULES}
    found = {name: Choice(RULES[name].shape, steps) for name, steps in stops.items()}
    found[CONSTANT.format(PLATEAU)] = Choice("constant", stops[PLATEAU])
    found |= {COOLED.format(name): Choice("cooled", stops[name]) for name in COOLED_STOPS}
    found[LAST_STEP] = common(LAST)
    return found | {f"step {step}": common(step) for step in COMMON}


def common(step: int) -> Choice:
    return Choice("constant", (step,) * len(TASKS))


def on_validation(lab: Laboratory, folders: tuple[Path, ...]) -> dict[str, Any]:
    """Experts and merges, each method with the parameters that are best there."""
    merged = {}
    for method, grid in GRID.items():
        tried = [(lab.merged(folders, "validation", method, params), params) for params in grid]
        accuracies, params = max(tried, key=lambda pair: sum(pair[0]))
        merged[method] = {"params": params, "accuracies": accuracies}
    return {"experts": lab.experts(folders, "validation"), "merged": merged}


def on_test(
    lab: Laboratory, folders: tuple[Path, ...], validated: Mapping[str, Any]
) -> dict[str, Any]:
    """The same on the test split, with the parameters that validation chose."""
    merged = {
        method: {
            "params": said["params"],
            "accuracies": lab.merged(folders, "test", method, said["params"]),
        }
        for method, said in validated["merged"].items()
    }
    return {"experts": lab.experts(folders, "test"), "merged": merged}


def results_of(lab: Laboratory, root: Path, setting: Setting, test: bool) -> dict[str, Any]:
    """All numbers of a setting."""
    compared, measured = choices(root, setting), dict[str, Any]()
    for name, choice in compared.items():
        print(setting.name, name, choice.steps, flush=True)
        folders = choice.folders(root, setting)
        measured[name] = {"shape": choice.shape, "steps": choice.steps}
        measured[name]["validation"] = on_validation(lab, folders)
        if test and name in TESTED:
            measured[name]["test"] = on_test(lab, folders, measured[name]["validation"])
    if test:
        measured[BEST_COMMON] = best_common(lab, root, setting, measured)
    return measured


def best_common(
    lab: Laboratory, root: Path, setting: Setting, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """For each method the common step that is best on validation, and its test accuracies."""
    best = {}
    for method in GRID:
        step = max(COMMON, key=lambda step: _mean(measured, f"step {step}", method))
        said = measured[f"step {step}"]["validation"]["merged"][method]
        folders = common(step).folders(root, setting)
        tested = lab.merged(folders, "test", method, said["params"])
        best[method] = said | {"step": step, "test": tested}
    return best


def _mean(measured: Mapping[str, Any], name: str, method: str) -> float:
    accuracies: list[float] = measured[name]["validation"]["merged"][method]["accuracies"]
    return sum(accuracies) / len(accuracies)


def check_stops(root: Path, setting: Setting) -> None:
    """Where the loop stopped itself, our reading of its curve must say so too."""
    for task in TASKS:
        run, read = Run(root, setting, "plateau", task), stop(root, setting, "plateau 1/64", task)
        assert read == run.steps[-1], f"{run.folder} ends at {run.steps[-1]}, read as {read}"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/early-stopping"))
    parser.add_argument("--test", action="store_true", help="when all is chosen")
    asked = parser.parse_args()
    root = asked.out.resolve()
    os.environ["HUBMERGE_HOME"] = str(root / "home")
    torch.set_num_threads(1)  # as in training: a rerun gives the same numbers
    found = {}
    with connect("local") as hub:
        lab = Laboratory(hub, root)
        for setting in SETTINGS:
            train_all(root, setting)
            check_stops(root, setting)
            found[setting.name] = results_of(lab, root, setting, asked.test)
            said = {"tasks": TASKS, "every": EVERY, "last": LAST, "settings": found}
            RESULTS.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
