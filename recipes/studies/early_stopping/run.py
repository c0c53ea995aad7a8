"""Compare two rules of early stopping: where they stop, and the accuracy of the merged stops.

    python -m recipes.studies.early_stopping.run --out build/early-stopping

Trains and measures what is missing, and writes results.json next to this file. Scales, the best
common step and the defaults are chosen on validation; with --test the points of TESTED are also
measured on the test split.
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
from recipes.studies.early_stopping.measure import CachedEvaluator
from recipes.studies.early_stopping.runs import EVERY, LAST, TASKS, Run, Setting
from recipes.studies.early_stopping.stops import RULES

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
"""Stops that are also reached with a constant rate and a cool-down in the last fifth."""
TESTED = (
    *("plateau 1/4", PLATEAU, "plateau 1/64", CONSTANT.format(PLATEAU)),
    *("noise 2 x 3", "noise 1 x 3", "noise 1 x 10", NOISE, "noise 0.5 x 20"),
    *map(COOLED.format, COOLED_STOPS),
    LAST_STEP,
)
"""The defaults, the extremes, and the last step for comparison."""


@dataclass(frozen=True)
class StepChoice:
    """A step for each task, on the runs with one learning-rate schedule."""

    shape: str
    steps: tuple[int, ...]

    def folders(self, root: Path, setting: Setting) -> tuple[Path, ...]:
        pairs = zip(TASKS, self.steps, strict=True)
        return tuple(Run(root, setting, self.shape, task).step(step) for task, step in pairs)


def train_all(root: Path, setting: Setting) -> None:
    """Train the missing runs of a setting."""
    for task in TASKS:
        Run(root, setting, "plateau", task).train()
        Run(root, setting, "constant", task).train()
        stops = {stop_step(root, setting, name, task) for name in COOLED_STOPS}
        Run(root, setting, "cooled", task).train(stops)


def stop_step(root: Path, setting: Setting, name: str, task: str) -> int:
    """The step at which a rule stops a task."""
    return RULES[name].find_stop(Run(root, setting, RULES[name].shape, task).curve())


def make_choices(root: Path, setting: Setting) -> dict[str, StepChoice]:
    """The choices to compare, by name."""
    stops = {name: tuple(stop_step(root, setting, name, task) for task in TASKS) for name in RULES}
    choices = {name: StepChoice(RULES[name].shape, steps) for name, steps in stops.items()}
    choices[CONSTANT.format(PLATEAU)] = StepChoice("constant", stops[PLATEAU])
    choices |= {COOLED.format(name): StepChoice("cooled", stops[name]) for name in COOLED_STOPS}
    choices[LAST_STEP] = common_step(LAST)
    return choices | {f"step {step}": common_step(step) for step in COMMON}


def common_step(step: int) -> StepChoice:
    return StepChoice("constant", (step,) * len(TASKS))


def evaluate_on_validation(lab: CachedEvaluator, folders: tuple[Path, ...]) -> dict[str, Any]:
    """Accuracies of experts and merges, each method with its best parameters on validation."""
    merged = {}
    for method, grid in GRID.items():
        tried = [
            (lab.merge_accuracies(folders, "validation", method, params), params) for params in grid
        ]
        accuracies, params = max(tried, key=lambda pair: sum(pair[0]))
        merged[method] = {"params": params, "accuracies": accuracies}
    return {"experts": lab.expert_accuracies(folders, "validation"), "merged": merged}


def evaluate_on_test(
    lab: CachedEvaluator, folders: tuple[Path, ...], validated: Mapping[str, Any]
) -> dict[str, Any]:
    """Accuracies on the test split, with the parameters chosen on validation."""
    merged = {
        method: {
            "params": record["params"],
            "accuracies": lab.merge_accuracies(folders, "test", method, record["params"]),
        }
        for method, record in validated["merged"].items()
    }
    return {"experts": lab.expert_accuracies(folders, "test"), "merged": merged}


def measure_setting(
    lab: CachedEvaluator, root: Path, setting: Setting, test: bool
) -> dict[str, Any]:
    """All numbers of a setting."""
    compared, measured = make_choices(root, setting), dict[str, Any]()
    for name, choice in compared.items():
        print(setting.name, name, choice.steps, flush=True)
        folders = choice.folders(root, setting)
        measured[name] = {"shape": choice.shape, "steps": choice.steps}
        measured[name]["validation"] = evaluate_on_validation(lab, folders)
        if test and name in TESTED:
            measured[name]["test"] = evaluate_on_test(lab, folders, measured[name]["validation"])
    if test:
        measured[BEST_COMMON] = best_common_steps(lab, root, setting, measured)
    return measured


def best_common_steps(
    lab: CachedEvaluator, root: Path, setting: Setting, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """For each method the common step that is best on validation, and its test accuracies."""
    best = {}
    for method in GRID:
        step = max(COMMON, key=lambda step: _mean(measured, f"step {step}", method))
        record = measured[f"step {step}"]["validation"]["merged"][method]
        folders = common_step(step).folders(root, setting)
        tested = lab.merge_accuracies(folders, "test", method, record["params"])
        best[method] = record | {"step": step, "test": tested}
    return best


def _mean(measured: Mapping[str, Any], name: str, method: str) -> float:
    accuracies: list[float] = measured[name]["validation"]["merged"][method]["accuracies"]
    return sum(accuracies) / len(accuracies)


def check_stops(root: Path, setting: Setting) -> None:
    """Check that the rule read from the curve stops where the training loop stopped."""
    for task in TASKS:
        run, read = (
            Run(root, setting, "plateau", task),
            stop_step(root, setting, "plateau 1/64", task),
        )
        assert read == run.steps[-1], f"{run.folder} ends at {run.steps[-1]}, read as {read}"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/early-stopping"))
    parser.add_argument(
        "--test", action="store_true", help="also measure on test; only when all is chosen"
    )
    options = parser.parse_args()
    root = options.out.resolve()
    os.environ["HUBMERGE_HOME"] = str(root / "home")
    torch.set_num_threads(1)  # as in training: a rerun gives the same numbers
    choices = {}
    with connect("local") as hub:
        lab = CachedEvaluator(hub, root)
        for setting in SETTINGS:
            train_all(root, setting)
            check_stops(root, setting)
            choices[setting.name] = measure_setting(lab, root, setting, options.test)
            record = {"tasks": TASKS, "every": EVERY, "last": LAST, "settings": choices}
            RESULTS.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
