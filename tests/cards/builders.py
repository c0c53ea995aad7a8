"""Builders of a selection of two tasks with steps 2, 4 and 8, and of the merge made from it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost, Swap, UniformPoint
from hubmerge.manifest import Manifest, files_digest
from hubmerge.recipe_ids import recipe_id
from hubmerge.scores import Score
from hubmerge.source import Source
from tests.locks import stderr_of

TASKS = ("cats@1", "dogs@1")
DATA = {"cats@1": "o/cat-pictures@" + "c" * 40, "dogs@1": None}
STEPS = (2, 4, 8)
OWN = {"cats@1": (0.70, 0.80, 0.90), "dogs@1": (0.60, 0.75, 0.85)}
# The choice is cats at 4 and dogs at 2; dogs at 4 is as good within the noise.
MERGED = {"cats@1": (0.60, 0.68, 0.55), "dogs@1": (0.68, 0.675, 0.58)}
FILES = {"model.safetensors": "1" * 64}


def fake_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def source(task: str, step: int, licence: str | None = "mit", **changes: Any) -> Source:
    name, digest = f"o/{task.partition('@')[0]}", files_digest(files(f"{task}{step}"))
    sha, last = fake_hash(f"{name}{step}", 40), fake_hash(f"{name}8", 40)
    return Source(
        f"{name}@step{step}", sha, digest, step, task, last_step=8, last_sha=last,
        licence=licence, **changes,
    )  # fmt: skip


def files(seed: str) -> dict[str, str]:
    return {"model.safetensors": fake_hash(seed, 64)}


BASE = Source(
    "o/base@main", fake_hash("base", 40), files_digest(files("base")), licence="apache-2.0"
)


def pick(policy: str, cats: int, dogs: int, accuracy: float, gain: Any = None) -> Pick:
    shares = {"cats@1": accuracy + 0.05, "dogs@1": accuracy - 0.05}
    return Pick(
        policy=policy,
        experts=(source("cats@1", cats), source("dogs@1", dogs)),
        params={"density": 0.2, "scale": 1.0},
        accuracy=accuracy,
        stderr=stderr_of(shares, 400),
        tasks=shares,
        gain=gain,
        evaluations=12 if policy == "coordinate" else 3,
    )


def lock(**changes: Any) -> Lock:
    picks = (
        pick("last", 8, 8, 0.60),
        pick("uniform", 4, 4, 0.66, (0.06, 0.02, 0.10)),
        pick("coordinate", 4, 2, 0.68, (0.08, 0.04, 0.12)),
    )
    experts = {e.sha: e for p in picks for e in p.experts}.values()
    pins = tuple(Pin(e.label, e, files(f"{e.task}{e.step}")) for e in experts)
    swaps = {
        task: tuple(
            Swap(
                source(task, step).sha, source(task, step).label, step, OWN[task][index],
                MERGED[task][index], tied=(task, step) == ("dogs@1", 4),
            )
            for index, step in enumerate(STEPS)
        )
        for task in TASKS
    }  # fmt: skip
    fields = {
        "base": Pin("o/base", BASE, files("base")),
        "experts": pins,
        "tasks": tuple(LockedTask(task, DATA[task], 400) for task in TASKS),
        "method": "ties",
        "chosen": "coordinate",
        "picks": picks,
        "swaps": swaps,
        "uniform": (
            UniformPoint(2, 0.62, 0.02),
            UniformPoint(4, 0.66, picks[1].stderr),
            UniformPoint(8, 0.60, 0.02),
        ),
        "seed": 0,
        "spent": SelectionCost(21, 8400),
        "conclusive": True,
        "budget": "40 merges",
        "command": "hubmerge select o/cats o/dogs --target ties --budget 40",
        "versions": {"hubmerge": "0.2.0"},
    }
    return Lock(**{**fields, **changes})


def merge(selection: Lock | None = None, policy: str | None = None, **changes: Any) -> Manifest:
    """The manifest of the merge made from a pick of a lock."""
    selection = selection or lock()
    picked = selection.pick(policy)
    fields = {
        "kind": "merge", "base": selection.base.source, "experts": picked.experts,
        "method": selection.method, "params": dict(picked.params),
        "lock": hashlib.sha256(selection.to_bytes()).hexdigest(), "layout": "open_clip",
        "command": "hubmerge merge --lock hubmerge.lock", "versions": {"hubmerge": "0.2.0"},
        "files": files(policy or selection.chosen),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def score(model: str, task: str, value: float, recipe: str | None = None) -> Score:
    stderr = math.sqrt(value * (1 - value) / 1000)
    return Score(
        "label", model, task, "test", "accuracy", value, 1000, stderr, recipe, DATA.get(task)
    )


def scores(selection: Lock | None = None) -> list[Score]:
    """Means: this merge 75, last steps 65, best common step 73, base 45; and the experts alone."""
    selection = selection or lock()
    values = {"coordinate": (0.80, 0.70), "last": (0.60, 0.70), "uniform": (0.76, 0.70)}
    log = []
    for policy, pair in values.items():
        picked = selection.pick(policy)
        recipe = recipe_id(selection.base.source, picked.experts, selection.method, picked.params)
        digest = files_digest(files(policy))
        log += [score(digest, task, v, recipe) for task, v in zip(TASKS, pair, strict=True)]
    log += [score(BASE.digest, "cats@1", 0.50), score(BASE.digest, "dogs@1", 0.40)]
    chosen = zip(selection.pick("coordinate").experts, TASKS, (0.90, 0.80), strict=True)
    return log + [score(expert.digest, task, value) for expert, task, value in chosen]
