"""The workers of a selection as actors of a Ray cluster: each holds its own merge in memory.

A node needs what `engines.ray` says. If a node is lost, an actor on another one does its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.errors import UsageError
from hubmerge.evaluation import rows_together
from hubmerge.flows.select_worker import WorkerSetup, open_rows
from hubmerge.flows.select_workers import worker_setup
from hubmerge.reproduce.code_digest import code_version
from hubmerge.reproduce.engines.ray import join_cluster, reaches_embedded_hub
from hubmerge.reproduce.engines.threads import thread_environment
from hubmerge.selection.workers import RowReply, RowRequest, WorkerDied, WorkerRows
from hubmerge.typed_json import from_line, to_line


@contextmanager
def ray_workers(
    prepared: PreparedSelection,
    hub: str | None,
    count: int,
    *,
    address: str,
    cores: int,
    home: str | None,
) -> Iterator[WorkerRows]:
    """`count` actors that evaluate rows of a selection, until the block ends.

    The arguments are those of `open_ray`. Raises UsageError without Ray or a cluster, or if its
    nodes cannot reach the Hub.
    """
    ray = join_cluster(address, cores)
    try:
        if hub == "local" and not reaches_embedded_hub(ray):
            raise UsageError(
                "The experts are on the embedded Hub of this machine, which the other nodes of the "
                "cluster cannot reach.",
                "Leave --engine ray out, or publish the experts on a Hub that they reach.",
            )
        setup = worker_setup(prepared, hub, count)
        environment = {"HUBMERGE_HOME": home} if home else {}
        start = partial(RayWorker, ray, setup, environment)
        sizes = [rows_together(task) for task in prepared.pool.tasks]
        rows = WorkerRows(count, sizes, start, partial(_wait_for_any, ray))
        try:
            yield rows
        finally:
            rows.close()
    finally:
        ray.shutdown()


class RayWorker:
    """A worker that is an actor on a node that Ray chooses."""

    def __init__(
        self, ray: ModuleType, setup: WorkerSetup, environment: Mapping[str, str], number: int
    ) -> None:
        self._ray = ray
        # One CPU each, so that all find room; the threads are those of the parent anyway.
        actor = ray.remote(max_restarts=0, num_cpus=1)(RowActor)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0 and setup.device != "cpu"
        waiting = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        self._actor = actor.options(
            num_gpus=1 if has_gpus else 0,
            scheduling_strategy="SPREAD",
            runtime_env={
                "env_vars": {**thread_environment(setup.threads), **waiting, **environment}
            },
        ).remote(to_line(setup), code_version())
        self.reply: Any = None

    def send(self, request: RowRequest) -> None:
        self.reply = self._actor.evaluate.remote(to_line(request))

    def receive(self) -> RowReply:
        try:
            return from_line(RowReply, self._ray.get(self.reply))
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"was lost by Ray ({type(error).__name__})") from error

    def close(self) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


def _wait_for_any(ray: ModuleType, workers: Sequence[RayWorker]) -> Sequence[RayWorker]:
    ready, _ = ray.wait([worker.reply for worker in workers], num_returns=1)
    return [worker for worker in workers if worker.reply in ready]


class RowActor:
    """Evaluates requests on a node if its code is the parent's."""

    def __init__(self, setup: str, code: str) -> None:
        self._stack, self._rows = ExitStack(), None
        self._problem = _other_code(code)
        if not self._problem:
            self._rows = self._stack.enter_context(open_rows(from_line(WorkerSetup, setup)))

    def evaluate(self, request: str) -> str:
        """The reply to a request; both are lines of JSON."""
        if self._rows is None:
            hint = "Install the same hubmerge on every node."
            return to_line(RowReply(error=("UsageError", self._problem, hint)))
        return to_line(self._rows(from_line(RowRequest, request)))


def _other_code(code: str) -> str:
    here = code_version()
    return "" if here == code else f"A node has other code ({here}) than this process ({code})."
