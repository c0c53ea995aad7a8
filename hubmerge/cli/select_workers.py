"""The workers of `hubmerge select`, by its options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from hubmerge.cli.options import Option
from hubmerge.cli.run_engine import EngineName, count_cores, find_gpus
from hubmerge.cli.session import Session
from hubmerge.errors import UsageError

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import PreparedSelection
    from hubmerge.selection.row_jobs import RowEvaluator


@dataclass(frozen=True)
class WorkerOptions:
    """How many processes evaluate merges, and where; the lock does not depend on it."""

    workers: Annotated[
        int, Option(min=1, help="Processes that evaluate merges, each with its own in memory.")
    ] = 1
    engine: Annotated[
        EngineName, Option(help="Where --workers run: on this machine, or on a Ray cluster.")
    ] = "local"
    ray_address: Annotated[
        str | None, Option(help="Ray cluster to join. [RAY_ADDRESS, else one is started here]")
    ] = None

    def check(self, is_merge: bool) -> None:
        """Raises UsageError for options that do not go together, or with --target moe."""
        if self.engine != "ray" and self.ray_address is not None:
            raise UsageError("--ray-address needs --engine ray.", "Add it, or leave both out.")
        if not is_merge and self != WorkerOptions():
            raise UsageError(
                "--workers and --engine are for merges: with moe, starts are trained one by one.",
                "Leave them out.",
            )

    @contextmanager
    def open(self, session: Session, prepared: PreparedSelection) -> Iterator[RowEvaluator | None]:
        """What evaluates rows; None for this process."""
        if self.engine == "ray":
            with self._open_ray(session, prepared) as rows:
                yield rows
        elif self.workers > 1:
            from hubmerge.flows.select_workers import WorkerPlace, local_workers

            search_path = os.pathsep.join(folder for folder in sys.path if folder)
            place = WorkerPlace(
                environment={**os.environ, "PYTHONPATH": search_path},
                logs=session.home / "logs" / "select",
                gpus=() if prepared.request.device == "cpu" else find_gpus(),
            )
            with local_workers(prepared, session.hub, self.workers, place) as workers:
                yield workers
        else:
            yield None

    @contextmanager
    def _open_ray(self, session: Session, prepared: PreparedSelection) -> Iterator[RowEvaluator]:
        from hubmerge.reproduce.engines.ray import LOCAL_CLUSTER, LOOPBACK_ONLY, NO_USAGE_STATS
        from hubmerge.reproduce.engines.ray_rows import ray_workers

        address = self.ray_address or os.environ.get("RAY_ADDRESS")
        os.environ.update(NO_USAGE_STATS if address else NO_USAGE_STATS | LOOPBACK_ONLY)
        hub = session.hub or os.environ.get("HUBMERGE_HUB")
        with ray_workers(
            prepared,
            hub,
            self.workers,
            address=address or LOCAL_CLUSTER,
            cores=max(count_cores(), self.workers),
            home=str(session.home.absolute()) if hub == "local" else None,
        ) as workers:
            yield workers
