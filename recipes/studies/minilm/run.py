"""Experts of a pretrained encoder, full and LoRA: train, publish, merge and evaluate them.

    python -m recipes.studies.minilm.run

On the embedded Hub, with the offline text tasks. Another run continues where the last one ended.
Scales are chosen on validation; test is read once, for build/minilm-recipe/results.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hubmerge.hub.environment import connect
from hubmerge.reproduce.units.wheels import make_base
from recipes.studies.minilm.base import WHEEL

OUT = Path("build/minilm-recipe")
HERE = Path(__file__).parent
TASKS = ("movie", "source", "noun", "verb", "emoji")
STEPS = (16, 64, 256)
SCALES = (0.3, 0.5, 1.0)
SETTINGS = [
    ("average", None),
    *(("task_arithmetic", s) for s in SCALES),
    *(("ties", s) for s in SCALES),
]


def hubmerge(*words: object) -> Any:
    """Run a command and return its JSON output."""
    command = [sys.executable, "-m", "hubmerge", *map(str, words), "--json"]
    print("$ hubmerge", *words, file=sys.stderr, flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def publish_base() -> None:
    """Upload the base to the Hub, so that experts refer to its commit."""
    make_base(WHEEL, OUT / "base")
    with connect("local") as hub:
        hub.api.create_repo("me/minilm", exist_ok=True)
        hub.api.upload_folder(repo_id="me/minilm", folder_path=OUT / "base")


def mean_accuracy(model: object, split: str) -> tuple[float, float]:
    """Mean raw accuracy over the tasks and its standard error."""
    tasks = ",".join(f"mini-{task}" for task in TASKS)
    scores = hubmerge("eval", model, "--tasks", tasks, "--split", split)
    error = sum(score["stderr"] ** 2 for score in scores) ** 0.5 / len(scores)
    return sum(score["value"] for score in scores) / len(scores), error


def merge_experts(tune: str, step: int, method: str, scale: float | None) -> Path:
    """Merge one step of all experts; returns the folder."""
    folder = OUT / "merges" / f"{tune}-{step}-{method}-{scale}"
    settings = () if scale is None else ("--set", f"scale={scale}")
    experts = [f"me/{tune}-{task}@step{step}" for task in TASKS]
    hubmerge("merge", *experts, "--method", method, *settings, "--out", folder)
    return folder


def measure_step(tune: str, step: int) -> dict[str, Any]:
    """Test accuracy of the experts at one step and of their best merge by each method."""
    own = [
        hubmerge("eval", f"me/{tune}-{task}@step{step}", "--tasks", f"mini-{task}")[0]["value"]
        for task in TASKS
    ]
    row: dict[str, Any] = {"tune": tune, "step": step, "experts": sum(own) / len(own)}
    for method in ("average", "task_arithmetic", "ties"):
        folders = [merge_experts(tune, step, m, scale) for m, scale in SETTINGS if m == method]
        best = max(folders, key=lambda folder: mean_accuracy(folder, "validation")[0])
        row[method], row[f"{method} s.e."] = mean_accuracy(best, "test")
        row[f"{method} scale"] = best.name.rpartition("-")[2]
    return row


def main() -> None:
    """Publish the base, train, measure, and write the results."""
    os.environ |= {"HUBMERGE_HUB": "local", "HUBMERGE_HOME": str((OUT / "home").resolve())}
    publish_base()
    for tune, spec in (("full", "train.yaml"), ("lora", "lora.yaml")):
        for task in TASKS:
            hubmerge("train", HERE / spec, "--task", f"mini-{task}", "--to", f"me/{tune}-{task}")
    rows = [measure_step(tune, step) for tune in ("full", "lora") for step in STEPS]
    base, error = mean_accuracy("me/minilm", "test")
    results = {"tasks": TASKS, "base": base, "base s.e.": error, "rows": rows}
    (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
