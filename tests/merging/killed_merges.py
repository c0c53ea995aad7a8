"""Kill merges at seeded moments, and report what each left and what the next run made of it.

    python -m tests.merging.killed_merges FOLDER METHOD KILLS

A process of its own, without threads, so that it can fork: a child merges and is killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.merging.engine import merge
from hubmerge.merging.plan import MergePlan
from hubmerge.weights.checkpoint import open_checkpoint
from tests.merging.builders import write_models

_SIZES = {"large": 700_000, "matrix": 200_000, "small": 9}


def make_plan(folder: Path, name: str) -> MergePlan:
    source = np.random.default_rng(0)
    models = [
        {tensor: source.normal(size=size).astype(np.float32) for tensor, size in _SIZES.items()}
        for _ in range(4)
    ]
    return write_models(folder, *models)(name)


def kill_one(plan: MergePlan, out: Path, after: float) -> bool:
    """Merge in a child, and kill it after so many seconds; whether it was still running."""
    child = os.fork()
    if child == 0:
        try:
            merge(plan, out, threads=2)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def run(folder: Path, name: str, kills: int) -> dict[str, Any]:
    """Kill merges until so many were killed while they ran."""
    plan = make_plan(folder, name)
    start = time.perf_counter()
    # In a child too: a process that has started threads cannot fork.
    _merge_in_child(plan, folder / "whole")
    duration, whole = time.perf_counter() - start, open_checkpoint(folder / "whole").digest()
    moments, trials = random.Random(0), []
    while sum(trial["killed"] for trial in trials) < kills and len(trials) < 4 * kills:
        out = folder / f"out{len(trials)}"
        killed = kill_one(plan, out, moments.uniform(0, duration))
        seen = open_checkpoint(out).digest() if out.exists() else None
        _merge_in_child(plan, out, replace=True)
        left = [path.name for path in folder.iterdir() if "out" in path.name and path != out]
        again = open_checkpoint(out).digest()
        trials.append({"killed": killed, "seen": seen, "again": again, "left": left})
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink()
        out.rmdir()
    return {"whole": whole, "trials": trials}


def _merge_in_child(plan: MergePlan, out: Path, replace: bool = False) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            merge(plan, out, replace=replace, threads=2)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
