"""A script with a Trainer for a test to kill: base, output folder, repository, step of the kill."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hubmerge import PushSteps
from tests.callbacks.builders import load, make_trainer


class KillAt(TrainerCallback):
    """Ends the process as `kill -9` does, after a step was saved and before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(base: Path, out: Path, repo: str, step: int) -> None:
    steps = PushSteps(to=repo, patience_s=2.0)
    trainer = make_trainer(
        load(base), out, [steps, KillAt(step)], save_strategy="steps", save_steps=3
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
