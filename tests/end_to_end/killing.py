"""Train, kill -9, and run the same command again; run as a script, it prints results as JSON.

Every run is a fork of a process that has imported everything and started no thread, so a run takes
one second instead of ten. A run is killed at its n-th change of a file in its folder, or after some
time.
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
from hubmerge.cli.app import make_app

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
STEPS = ("step2", "step4", "step6")


def run_training(to: str, out: Path, *more: str) -> None:
    """Run `hubmerge train`; exits with its exit code."""
    words = [
        "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--to", to, "--out",
        str(out), "--steps", "6", "--push-every", "2", "--lr", "5e-4", "--batch", "8",
        "--max-examples", "64", "--state-every", "1", "--evaluate-every", "3", "--quiet", *more,
    ]  # fmt: skip
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    make_app(words)(words, standalone_mode=True)


def run_forked(function: Callable[[], None], kill_after_s: float | None = None) -> int:
    """Run a function in a child; returns its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            function()
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


def kill_at_event(number: int, folder: Path, log: Path | None = None) -> None:
    """Kill this process just before its n-th change of a file in the folder."""
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


def kill_and_rerun(
    name: str, root: Path, more: tuple[str, ...], at: int = 0, after_s: float = 0
) -> Any:
    """Kill a run and repeat it twice; returns exit codes, leftover files and weights."""
    out, to = root / name, f"killed/{name}"

    def start() -> None:
        if at:
            kill_at_event(at, out)
        run_training(to, out, *more)

    killed = run_forked(start, after_s or None)
    again = run_forked(lambda: run_training(to, out, *more))
    third = run_forked(lambda: run_training(to, out, *more))
    left = sorted(path.name for path in out.iterdir() if path.name not in ("steps", ".lock"))
    return {"at": at or after_s, "killed": killed, "again": again, "third": third,
            "left": left, "to": to, "weights": step_digests(out)}  # fmt: skip


def step_digests(out: Path) -> dict[str, str]:
    """A digest of the weights and the curve of each step; neither depends on the repository."""
    digests = {}
    for step in STEPS:
        folder = out / "steps" / step
        weights = next(folder.glob("*model.safetensors")).read_bytes()
        curve = json.dumps(json.loads((folder / "hubmerge.json").read_text())["validation"])
        digests[step] = sha256(weights + curve.encode()).hexdigest()
    return digests


def main(root: Path, events: str, moments: int, more: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    whole, log = root / "whole", root / "events"

    def count_events() -> None:
        kill_at_event(-1, whole, log)
        run_training("killed/whole", whole, *more)

    began = time.monotonic()
    assert run_forked(count_events) == 0
    lasted = time.monotonic() - began
    total = log.stat().st_size
    first, every = map(int, events.split("/"))
    trials = [kill_and_rerun(f"e{n}", root, more, at=n) for n in range(first, total + 1, every)]
    trials += [
        kill_and_rerun(f"m{n}", root, more, after_s=lasted * (n + 0.5) / moments)
        for n in range(moments)
    ]
    print(json.dumps({"events": total, "whole": step_digests(whole), "trials": trials}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), tuple(sys.argv[4:]))
