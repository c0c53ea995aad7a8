"""The engine that `hubmerge run` was asked for, on what this machine has."""

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
    from hubmerge.reproduce.store import Store
    from hubmerge.reproduce.unit import Shop, Unit

EngineName = Literal["local", "ray"]


@contextmanager
def served(shop: Shop) -> Iterator[None]:
    """The embedded Hub for as long as units come and go, so that none of them has to start it."""
    with connect("local") if shop.hub == "local" else nullcontext():
        yield


def open_engine(
    name: EngineName,
    units: Sequence[Unit],
    shop: Shop,
    work: Path,
    workers: int | None,
    address: str | None,
) -> Engine:
    """The engine of that name, for these units; raises UsageError if it is not to be had."""
    from hubmerge.reproduce.perform import perform

    if name == "ray":
        return _open_ray(perform, shop, workers, address or os.environ.get("RAY_ADDRESS"))
    from hubmerge.reproduce.engines.local import Local

    wanted = any(unit.gpus for unit in units)
    return Local(
        perform,
        shop,
        cores=_cores(),
        workers=workers,
        gpus=_gpus() if wanted else (),
        environment=dict(os.environ),
        logs=work / "logs",
    )


def _open_ray(perform: Perform, shop: Shop, workers: int | None, address: str | None) -> Engine:
    from hubmerge.reproduce.engines.ray import HERE, PRIVATE, QUIET, open_ray

    os.environ.update(QUIET if address else QUIET | PRIVATE)
    home = os.environ["HUBMERGE_HOME"] if shop.hub == "local" else None
    return open_ray(
        perform, shop, address=address or HERE, workers=workers, cores=_cores(), home=home
    )


def _cores() -> int:
    """The cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> tuple[str, ...]:
    """The ids of the GPUs that may be used here."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return tuple(place for place in said.split(",") if place and place != "-1")
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def check_weights(shop: Shop, store: Store, known: int) -> None:
    """Refuse to go on from units whose weights are not there any more."""
    if known and shop.hub == "local" and not (store.folder / "home" / "hub").is_dir():
        raise IntegrityError(
            f"{store.folder} knows {known} of these units, and the Hub with their weights is gone.",
            f"Put {store.folder / 'home'} back, or remove {store.units} to begin anew.",
        )
