"""Fast units for tests, with functions that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from hubmerge.errors import DataError, HubUnreachable
from hubmerge.reproduce.unit import Result, Unit, WorkContext


def unit(name: str, *needs: Unit, cpus: int = 1, gpus: float = 0, **params: object) -> Unit:
    roles = {needed.params["name"]: needed for needed in needs}
    return Unit("sum", {"name": name, "add": 1, **params}, name, roles, cpus, gpus)


def perform(unit: Unit, inputs: Mapping[str, Result], context: WorkContext) -> Result:
    """The sum of the needs plus one; the parameter `do` makes something unusual happen."""
    doing = unit.params.get("do")
    first = not (mark := context.folder / unit.key).exists()
    if doing and first:
        context.folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(os.getppid()))  # on Ray, the node
    if doing == "fail":
        raise DataError(f"{unit.about} has no rows.", "Add rows.")
    if doing == "break":
        raise KeyError("surprise")
    if doing == "unreachable" or (doing == "unreachable-once" and first):
        raise HubUnreachable("The Hub is away.", "Try later.")
    if doing == "die" or (doing == "die-once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(unit.params.get("sleep", 0)))
    total = unit.params["add"] + sum(result["sum"] for result in inputs.values())
    return {"sum": total, "third": total / 3, "name": unit.about}


def describe_process(unit: Unit, inputs: Mapping[str, Result], context: WorkContext) -> Result:
    """The id of the process and some of its environment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GREETING")
    time.sleep(float(unit.params.get("sleep", 0)))
    print("a library that prints")
    return {"pid": os.getpid(), **{name: os.environ.get(name) for name in names}}


def make_context(folder: Path) -> WorkContext:
    return WorkContext(None, "somebody", folder)
