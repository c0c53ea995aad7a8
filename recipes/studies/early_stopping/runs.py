"""The training runs: for each task, way of tuning and seed, one run of every shape below.

Runs that differ only in the threshold share their trajectory, so one run of the plateau rule with
the lowest threshold contains the stops of all thresholds. One run at a constant rate contains the
stops of every band and patience of the noise rule. Every evaluated step is pushed, so each stop is
a folder. The third shape cools down to stops that the other two found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hubmerge.hub.outbox import Outbox
from hubmerge.opening.references import read_local_manifest
from hubmerge.training_curve import ValidationPoint

TASKS = ("mini-mnist", "mini-fashion", "mini-hebrew", "mini-texture")
BASE = "hubmerge/tiny-clip"
LAST, EVERY, WARMUP = 600, 5, 50  # steps
PATIENCE, FACTOR, LOWEST = 3, 0.5, 1 / 64  # of the plateau rule
SHARED = (
    *("--base", BASE, "--batch", "32", "--clip", "1.0", "--no-augment"),
    *("--warmup-steps", str(WARMUP), "--evaluate-every", str(EVERY)),
)
TUNING = {
    "full": ("--lr", "5e-4", "--weight-decay", "0.1"),
    "lora": ("--tune", "lora", "--rank", "8", "--lr", "2e-3", "--weight-decay", "0"),
}
SHAPES = {
    "plateau": (
        *("--early-stop", "plateau", "--min-lr", str(LOWEST)),
        *("--patience", str(PATIENCE), "--factor", str(FACTOR)),
    ),
    "constant": ("--schedule", "constant"),
    "cooled": ("--anneal", "branch"),
}


@dataclass(frozen=True)
class Setting:
    """A way of tuning and a seed: all four tasks are trained with it."""

    tune: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.tune}-seed{self.seed}"


@dataclass(frozen=True)
class Run:
    """One trained run: a setting, the shape of its learning rate, a task."""

    root: Path
    setting: Setting
    shape: str
    task: str

    @property
    def folder(self) -> Path:
        return self.root / self.setting.name / self.shape / self.task

    def step(self, step: int) -> Path:
        """The folder of one pushed step."""
        return Outbox(self.folder).step_folder(step)

    @property
    def steps(self) -> tuple[int, ...]:
        """The pushed steps."""
        return Outbox(self.folder).saved_steps()

    def curve(self) -> tuple[ValidationPoint, ...]:
        """The validation curve, as the run wrote it."""
        lines = (self.folder / "validation.jsonl").read_text().splitlines()
        return tuple(ValidationPoint(**json.loads(line)) for line in lines)

    def is_done(self) -> bool:
        """Whether the run has ended, early or not."""
        manifest = read_local_manifest(self.step(self.steps[-1])) if self.steps else None
        return manifest is not None and manifest.step == manifest.last_step

    def train(self, pushed: Collection[int] = ()) -> None:
        """Train or continue the run; it pushes these steps, by default every evaluated step."""
        if self.is_done():
            return
        name = f"early-stopping/{self.setting.name}-{self.shape}-{self.task}"
        command = [sys.executable, "-m", "hubmerge", "train", "--task", self.task, "--to", name]
        command += [*SHARED, *TUNING[self.setting.tune], "--seed", str(self.setting.seed)]
        command += [*SHAPES[self.shape], "--steps", str(max(pushed, default=LAST))]
        command += ["--push-every", ",".join(map(str, sorted(pushed))) or str(EVERY)]
        command += ["--out", str(self.folder), "--hub", "local"]
        # One thread, so that a rerun gives the same bytes.
        env = os.environ | {"HUBMERGE_HOME": str(self.root / "home"), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
