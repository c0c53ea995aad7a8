"""A script for two processes: a Trainer with replicas of the model, base, output and repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hubmerge import PushSteps
from tests.callbacks.builders import KeepCopies, load, make_trainer


def main(base: Path, out: Path, repo: str) -> None:
    copies, steps = KeepCopies(), PushSteps(to=repo, evaluate=True)
    trainer = make_trainer(load(base), out, [copies, steps], max_steps=4, ddp_backend="gloo")
    trainer.train()
    if trainer.is_world_process_zero():
        (out / "weights.json").write_text(json.dumps(copies.weights))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
