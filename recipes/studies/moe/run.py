"""Mixtures of LoRA experts by the step they start from: figure 1 (right) and table 2, mini scale.

    python -m recipes.studies.selection.run train four-lora-seed0 four-lora-seed1 four-lora-seed2
    python -m recipes.studies.moe.run make    # every mixture of experts, on validation and test
    python -m recipes.studies.moe.run write   # results.json, tables and figure of docs/moe.md

Everything is stored in build/selection (the experts, shared with that study) and build/moe; another
run continues where the last one ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("MOE_ROOT") or "build/moe")
EXPERTS = Path(os.environ.get("SELECTION_ROOT") or "build/selection") / "home"
TASKS = ("mnist", "fashion", "hebrew", "texture")
SEEDS = (0, 1, 2)
EARLY = "early stop"
STARTS = (*(str(2**k) for k in range(12)), EARLY)
# The rate is from a pilot with short runs; the paper's is 1e-5 over 4000 steps.
TRAINING = {"train_steps": 300, "lr": 2e-4, "batch": 24, "augment": False, "weight_decay": 0.1}
ROUTERS: dict[str, dict[str, Any]] = {
    "arrow, unsigned": {},
    "arrow, signed": {"signed": True},
    "zero": {"router": "zero"},
    "random": {"router": "random"},
    "centroid": {"router": "centroid"},
    "top 1": {"top_k": 1},
    "all four": {"top_k": 4},
    "temperature 0.25": {"temperature": 0.25},
    "balance 0.01": {"balance": 0.01},
}


@dataclass(frozen=True)
class Trial:
    """One mixture of experts: its group in the tables, its variant, its start and its seed."""

    group: str
    start: str
    seed: int
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        name = "-".join(filter(None, (self.group, self.variant, self.start, f"seed{self.seed}")))
        return ROOT / "results" / f"{name.replace(' ', '_').replace(',', '')}.json"


def trials() -> Iterator[Trial]:
    """Every mixture of experts, those of the main tables first."""
    for seed in SEEDS:
        for start in STARTS:
            yield Trial("start", start, seed)
        for start in STARTS:
            yield Trial("untrained", start, seed, options={"train_steps": 0})
    for seed in SEEDS:
        for what, options in ROUTERS.items():
            yield Trial("router", "256", seed, what, options)
        for what in ("arrow, unsigned", "arrow, signed", "centroid"):
            untrained = {**ROUTERS[what], "train_steps": 0}
            yield Trial("router untrained", "256", seed, what, untrained)
    for seed in SEEDS:
        for start in ("8", "64", "256", "1024", "2048", EARLY):
            yield Trial("centroid", start, seed, options=ROUTERS["centroid"])
            untrained = {**ROUTERS["centroid"], "train_steps": 0}
            yield Trial("centroid untrained", start, seed, options=untrained)
    for seed in SEEDS:
        for start in ("8", "64", "256", "1024", "2048", EARLY):
            yield Trial("longer", start, seed, options={"train_steps": 1200})
    for seed in SEEDS:
        for start in ("256", "2048", EARLY):
            paper = {"train_steps": 4000, "lr": 1e-5}
            yield Trial("the paper's rate", start, seed, options=paper)


def train_and_measure(trial: Trial) -> dict[str, Any]:
    """Train one mixture of experts and measure it."""
    from hubmerge.flows import moerge as flow
    from hubmerge.flows.evaluate import evaluate
    from hubmerge.hub.environment import connect, home
    from hubmerge.hub.resolve import list_steps
    from hubmerge.opening.references import pin
    from hubmerge.refs import ModelRef
    from hubmerge.runs.machine import Machine
    from hubmerge.scores import ScoreLog
    from hubmerge.specs import MoeSpec

    with connect("local") as hub:
        refs = []
        for task in TASKS:
            repo = f"s{trial.seed}/{task}-lora"
            if trial.start == EARLY:
                repo += "-es"
                refs.append(
                    ModelRef(repo, revision=list_steps(hub, repo)[-1].label.partition("@")[2])
                )
            else:
                refs.append(ModelRef(repo, revision=f"step{trial.start}"))
        training = {} if trial.options.get("train_steps") == 0 else TRAINING
        moe_spec = MoeSpec(**{**training, "seed": trial.seed, **trial.options})
        request = flow.MoeRequest(tuple(refs), moe_spec)
        run = flow.prepare_moe(hub, request, ROOT, Machine())
        made = flow.moerge(hub, run, request, lambda *report: None)
        assert made is not None
        log = ScoreLog(home() / "scores.jsonl")
        model = pin(hub, ModelRef(path=made.folder))
        scores = evaluate(hub, [model], [], "test", log, lambda *report: None)
    routing = json.loads((made.folder / "routing.json").read_text())
    return {
        "group": trial.group, "what": trial.variant, "start": trial.start, "seed": trial.seed,
        "steps": [ref.revision for ref in refs],
        "validation": made.curve[-1].accuracy,
        "test": sum(score.value for score in scores) / len(scores),
        "tasks": {score.task.partition("@")[0]: score.value for score in scores},
        "own": _own_share(routing),
    }  # fmt: skip


def _own_share(routing: dict[str, Any]) -> float:
    """The mean weight that a task's tokens give to the task's own expert, over tasks and layers."""
    own = [layer[task] for task, layers in enumerate(routing["share"]) for layer in layers]
    return sum(own) / len(own)


def main() -> None:
    """Run one of the two actions; `make` takes names of groups, to make only those."""
    action, *groups = sys.argv[1:]
    os.environ["HUBMERGE_HUB"] = "local"
    os.environ["HUBMERGE_HOME"] = str(EXPERTS.resolve())
    if action == "write":
        from recipes.studies.moe.tables import write_page

        write_page(ROOT / "results")
        return
    import torch

    torch.set_num_threads(1)
    for trial in trials():
        if (groups and trial.group not in groups) or trial.file.exists():
            continue
        row = train_and_measure(trial)
        trial.file.parent.mkdir(parents=True, exist_ok=True)
        trial.file.write_text(json.dumps(row, indent=1) + "\n")
        print(trial.file.name, row["validation"], row["test"], flush=True)


if __name__ == "__main__":
    main()
