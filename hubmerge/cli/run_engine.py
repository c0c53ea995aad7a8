"""The engine of `hubmerge run`, with the cores and GPUs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubmerge.errors import IntegrityError
from hubmerge.hub.environment import connect

if TYPE_CHECKING:
    from hubmerge.reproduce.engines.engine import Engine, Perform
    from hubmerge.reproduce.store import ResultStore
    from hubmerge.reproduce.unit import Unit, WorkContext

EngineName = Literal["local", "ray"]


@contextmanager
def serve_hub(context: WorkContext) -> Iterator[None]:
    """Keep the embedded Hub running during a run, so that no unit has to start it."""
    with connect("local") if context.hub == "local" else nullcontext():
        yield


def open_engine(
    name: EngineName,
    units: Sequence[Unit],
    context: WorkContext,
    work: Path,
    workers: int | None,
    address: str | None,
) -> Engine:
    """The engine of that name; raises UsageError if it is not available."""
    from hubmerge.reproduce.perform import perform

    if name == "ray":
        return _open_ray(perform, context, workers, address or os.environ.get("RAY_ADDRESS"))
    from hubmerge.reproduce.engines.local import LocalEngine

    needs_gpu = any(unit.gpus for unit in units)
    return LocalEngine(
        perform,
        context,
        cores=count_cores(),
        workers=workers,
        gpus=find_gpus() if needs_gpu else (),
        environment=dict(os.environ),
        logs=work / "logs",
    )


def _open_ray(
    perform: Perform, context: WorkContext, workers: int | None, address: str | None
) -> Engine:
    from hubmerge.reproduce.engines.ray import (
        LOCAL_CLUSTER,
        LOOPBACK_ONLY,
        NO_USAGE_STATS,
        open_ray,
    )

    os.environ.update(NO_USAGE_STATS if address else NO_USAGE_STATS | LOOPBACK_ONLY)
    home = os.environ["HUBMERGE_HOME"] if context.hub == "local" else None
    return open_ray(
        perform,
        context,
        address=address or LOCAL_CLUSTER,
        workers=workers,
        cores=count_cores(),
        home=home,
    )


def count_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_gpus() -> tuple[str, ...]:
    """The ids of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(device for device in visible.split(",") if device and device != "-1")
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def check_weights(context: WorkContext, store: ResultStore, known: int) -> None:
    """Raises IntegrityError if there are known units, and the Hub with their weights is gone."""
    if known and context.hub == "local" and not (store.folder / "home" / "hub").is_dir():
        raise IntegrityError(
            f"{store.folder} has {known} of these units, but the Hub with their weights is gone.",
            f"Restore {store.folder / 'home'}, or remove {store.units_folder} to start again.",
        )
