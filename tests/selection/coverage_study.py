"""How often a selection is right about its gain, over many simulated worlds.

    python -m tests.selection.coverage_study --worlds 400 --rows 100 --correlation 0.85 --out DIR

Three ways to judge the same searches are compared: on the rows that they chose by (`same rows`), by
the bootstrap of the largest gain over every logged trial (`maximum`), and by cross-fitting, which
is what `hubmerge select` reports. `known` compares the truly best choice, as if it had been known
beforehand: no selection can be conclusive more often. Every world is one line of a file in `--out`;
a world that has a line is not run again, so that the same command resumes. The tables are made from
these files by `coverage_tables`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.selection import noise
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.cross_fit import FOLDS, CrossFit, cross_fit
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import find_grid
from hubmerge.selection.policy_results import LAST, policy_order
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.search import Budget
from hubmerge.trials import Trial

from .simulated_worlds import METHOD, TASKS, World, make_evaluator

_RESAMPLES = 400


def simulate(
    world: World, seed: int, budget: int | None = None, counts: tuple[int, ...] = (FOLDS,)
) -> dict[str, Any]:
    """Run the selection of one world on all rows, and on the folds of each count; in points."""
    evaluator = make_evaluator(world, seed)
    policies = tuple(policy_order(evaluator.pool))
    procedure = Procedure(find_grid(METHOD.name), policies, LAST)
    results = procedure.run(evaluator, Budget(budget))
    chosen, last = procedure.choose(results).result, results.results[LAST].result
    merges = evaluator.merges
    tasks = {task.id for task in TASKS}
    trials = [
        trial
        for trial in evaluator._measured.values()
        if trial.is_complete and trial.rows.keys() == tasks
    ]
    best = plain_choice((world.peak,) * len(TASKS), {"scale": 0.5})
    return {
        "seed": seed,
        "same_rows": _interval(chosen.trial, last.trial),
        "maximum_low": _maximum_low(chosen.trial, last.trial, trials),
        "true_gain": 100 * _true_gain(world, chosen.choice, last.choice),
        "merges": merges,
        "fits": {
            str(count): _cross_fit(world, procedure, evaluator, Budget(budget), count)
            for count in counts
        },
        "known": _interval(evaluator.measure(best), last.trial),
        "known_truth": 100 * _true_gain(world, best, last.choice),
    }


def _cross_fit(
    world: World, procedure: Procedure, evaluator: Evaluator, budget: Budget, count: int
) -> dict[str, Any]:
    """Cross-fit with so many folds, and count the merges as if there were no other count.

    `differences` has by task a string for each search: what it chose is better (+), worse (-) or
    the same on each row.
    """
    before = dict(evaluator._measured)
    fit = cross_fit(procedure, evaluator, lambda number: (Budget(budget.merges), None), count=count)
    assert fit is not None
    merges = evaluator.merges - len(before)
    evaluator._measured = before
    truths = [_true_gain(world, *_pair(fit, number)) for number in range(count)]
    return {
        "merges": merges,
        "true_gain": 100 * sum(truths) / count,
        "differences": _differences(fit, evaluator),
    }


def _pair(fit: CrossFit, number: int) -> tuple[Choice, Choice]:
    search = fit.searches[number]
    return search.chosen.result.choice, search.results[LAST].result.choice


def _differences(fit: CrossFit, evaluator: Evaluator) -> dict[str, list[str]]:
    pairs = [_pair(fit, number) for number in range(len(fit.searches))]
    trials = [(evaluator.measure(choice), evaluator.measure(rival)) for choice, rival in pairs]
    return {
        task.id: [
            _signs(ours.rows[task.id].bits, rival.rows[task.id].bits) for ours, rival in trials
        ]
        for task in fit.pool.tasks
    }


def _signs(ours: str, theirs: str) -> str:
    return "".join(
        "=" if a == b else "+" if a > b else "-" for a, b in zip(ours, theirs, strict=True)
    )


def _true_gain(world: World, choice: Choice, rival: Choice) -> float:
    return world.true_accuracy(choice) - world.true_accuracy(rival)


def _interval(trial: Trial, rival: Trial) -> list[float]:
    return [100 * value for value in noise.interval(trial, rival, 0)]


def _maximum_low(chosen: Trial, rival: Trial, trials: list[Trial]) -> float:
    """Return the gain minus the 97.5 % quantile of the largest resampled error of any trial."""
    random, errors = np.random.default_rng(0), np.zeros((len(trials), _RESAMPLES))
    for task, results in rival.rows.items():
        bits = np.array([[*trial.rows[task].correct] for trial in trials], float)
        gains = bits - np.array(results.correct, float)
        rows = gains.shape[1]
        drawn = random.multinomial(rows, np.ones(rows) / rows, _RESAMPLES) / rows
        errors += (gains - gains.mean(1, keepdims=True)) @ drawn.T / len(rival.rows)
    largest = float(np.quantile(errors.max(0), 0.975))
    return 100 * (noise.gain(chosen, rival) - largest)


def run(world: World, budget: int | None, seeds: range, counts: tuple[int, ...], out: Path) -> None:
    """Append a line for each world that has none."""
    out.mkdir(parents=True, exist_ok=True)
    text = f"{world.rows}-rows-{world.correlation}{'-any-two' if world.any_two else ''}"
    text += f"-height-{100 * world.height:g}"
    path = out / f"{text}{f'-budget-{budget}' if budget else ''}.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    done = {json.loads(line)["seed"] for line in lines}
    settings = asdict(world) | {"budget": budget}
    for seed in seeds:
        if seed not in done:
            line = json.dumps(settings | simulate(world, seed, budget, counts))
            with path.open("a") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="Seed of the first world.")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--correlation", type=float, default=0.95)
    parser.add_argument("--height", type=float, default=0.0, help="Points that can be gained.")
    parser.add_argument("--any-two", action="store_true", help="Any two choices correlate so.")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--folds", type=int, nargs="+", default=[FOLDS], help="One count or more.")
    parser.add_argument("--out", type=Path, default=Path("build/coverage"))
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.worlds)
    world = World(
        arguments.rows,
        arguments.correlation,
        arguments.height / 100,
        any_two=arguments.any_two,
    )
    run(world, arguments.budget, seeds, tuple(arguments.folds), arguments.out)
