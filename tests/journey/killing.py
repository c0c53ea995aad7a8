"""Train, kill -9 at some moment, run the same command again: run as a script, it tells JSON.

Every run is a fork of a process that has imported all there is and started no thread, so that one
takes a second and not ten. A kill comes at the n-th thing done to a file of the run's folder, or
after some time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import hubmerge.flows.train
import hubmerge.models.adapter
import hubmerge.runs.expert_job
import hubmerge.runs.expert_model
import hubmerge.runs.run
import hubmerge.tasks.stream
import hubmerge.training.loop
import hubmerge.training.position  # noqa: F401
from hubmerge.cli.app import app

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
STEPS = ("step2", "step4", "step6")


def train(to: str, out: Path, *more: str) -> None:
    """The command; exits with its code."""
    words = [
        "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--to", to, "--out",
        str(out), "--steps", "6", "--push-every", "2", "--lr", "5e-4", "--batch", "8",
        "--max-examples", "64", "--state-every", "1", "--evaluate-every", "3", "--quiet", *more,
    ]  # fmt: skip
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    app(words, standalone_mode=True)


def forked(work: Callable[[], None], kill_after_s: float | None = None) -> int:
    """Do it in a child; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            os._exit(99)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def dying_at(number: int, folder: Path, log: Path | None = None) -> None:
    """Have this process killed just before the n-th thing it does to a file in the folder."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not _is_inside(folder, event, arguments):
            return
        count += 1
        if log is not None:
            os.write(handle, b".")
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    handle = os.open(log, os.O_WRONLY | os.O_CREAT) if log is not None else -1
    sys.addaudithook(hook)


def _is_inside(folder: Path, event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return False
    return str(arguments[0]).startswith(str(folder))


def trial(name: str, root: Path, more: tuple[str, ...], at: int = 0, after_s: float = 0) -> Any:
    """Kill one run and repeat it; what came of it."""
    out, to = root / name, f"killed/{name}"

    def begin() -> None:
        if at:
            dying_at(at, out)
        train(to, out, *more)

    killed = forked(begin, after_s or None)
    again = forked(lambda: train(to, out, *more))
    third = forked(lambda: train(to, out, *more))
    left = sorted(path.name for path in out.iterdir() if path.name not in ("steps", ".lock"))
    return {"at": at or after_s, "killed": killed, "again": again, "third": third,
            "left": left, "to": to, "weights": weights_of(out)}  # fmt: skip


def weights_of(out: Path) -> dict[str, str]:
    """Weights and curve of each step, whose bytes do not say which repository they are for."""
    told = {}
    for step in STEPS:
        folder = out / "steps" / step
        weights = next(folder.glob("*model.safetensors")).read_bytes()
        curve = json.dumps(json.loads((folder / "hubmerge.json").read_text())["validation"])
        told[step] = sha256(weights + curve.encode()).hexdigest()
    return told


def main(root: Path, events: str, moments: int, more: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    whole, log = root / "whole", root / "events"

    def begin() -> None:
        dying_at(-1, whole, log)
        train("killed/whole", whole, *more)

    began = time.monotonic()
    assert forked(begin) == 0
    lasted = time.monotonic() - began
    total = log.stat().st_size
    first, every = map(int, events.split("/"))
    trials = [trial(f"e{n}", root, more, at=n) for n in range(first, total + 1, every)]
    trials += [
        trial(f"m{n}", root, more, after_s=lasted * (n + 0.5) / moments) for n in range(moments)
    ]
    print(json.dumps({"events": total, "whole": weights_of(whole), "trials": trials}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), tuple(sys.argv[4:]))
