"""The engine for a Ray cluster: an existing one, or one on this machine that ends with the run.

A node needs its own hubmerge, its own login at the Hub and its own caches: `HF_HOME` and
`HUBMERGE_HOME` are read on the node, so all its workers fetch a base or a data set once. A node
receives a unit as text, the number of its threads and, for the embedded Hub only, the Hub's folder;
never a token. Results return to the runner, which writes them. If a node is lost, the runner
retries its units on other nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from hubmerge.errors import UsageError, raise_together
from hubmerge.reproduce.code_digest import code_version
from hubmerge.reproduce.engines.engine import Perform, UnitError, UnitOutcome
from hubmerge.reproduce.engines.job import (
    decode_outcome,
    encode_error,
    encode_job,
    find_function,
    function_name,
    run_job,
)
from hubmerge.reproduce.engines.threads import thread_environment
from hubmerge.reproduce.unit import Result, Unit, WorkContext

LOCAL_CLUSTER = "local"
# Environment to set before Ray is imported: no usage statistics, and for a cluster that is started
# here no port open beyond 127.0.0.1 (the variable is named for systems where Ray does that anyway).
NO_USAGE_STATS = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def open_ray(
    perform: Perform,
    context: WorkContext,
    *,
    address: str = LOCAL_CLUSTER,
    workers: int | None = None,
    cores: int | None = None,
    home: str | None = None,
) -> RayEngine:
    """Join the cluster at an address (`auto` finds it), or start one here; raises UsageError.

    At most `workers` units run at once if given. `cores` is the size of a cluster that is started
    here, `home` the HUBMERGE_HOME of units, by default the node's own.
    """
    ray = join_cluster(address, cores)
    return RayEngine(ray, perform, context, workers, {"HUBMERGE_HOME": home} if home else {})


def join_cluster(address: str, cores: int | None) -> ModuleType:
    """Ray, connected to the cluster at an address or to one of `cores` that is started here.

    Raises UsageError if Ray is not installed, or there is no such cluster.
    """
    ray = _import_ray()
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL_CLUSTER:
        options |= {"include_dashboard": False, "num_cpus": cores}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"There is no Ray cluster at {address}: {error}.",
            "Start one with `ray start --head`, or leave --ray-address out to start one here.",
        ) from error
    return ray


def alive_nodes(ray: ModuleType) -> list[dict[str, Any]]:
    """The nodes of the cluster that answer."""
    return [node for node in ray.nodes() if node["Alive"]]


def reaches_embedded_hub(ray: ModuleType) -> bool:
    """Whether every node is this machine, whose embedded Hub no other one can reach."""
    here = ray.util.get_node_ip_address()
    return {node["NodeManagerAddress"] for node in alive_nodes(ray)} == {here}


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "The engine ray needs Ray, which is not installed.", "pip install 'hubmerge[ray]'"
        ) from error
    module: ModuleType = ray
    return module


class RayEngine:
    """Performs units as tasks of a cluster, which chooses a node with enough CPUs and GPUs.

    Ray retries nothing itself; the runner does.
    """

    def __init__(
        self,
        ray: ModuleType,
        perform: Perform,
        context: WorkContext,
        workers: int | None,
        environment: Mapping[str, str],
    ) -> None:
        self._ray, self._context, self._max_workers = ray, context, workers
        self._task = ray.remote(max_retries=0)(_run_on_node)
        self._perform, self._environment = function_name(perform), dict(environment)
        self._code = code_version()
        self._running: dict[Any, Unit] = {}

    def check(self, units: Sequence[Unit]) -> None:
        problems = []
        needed = max((unit.gpus for unit in units), default=0.0)
        most = self._most_on_one_node("GPU")
        if needed > most:
            problems.append(f"Units need {needed:g} GPUs, and no node has more than {most:g}.")
        if self._context.hub == "local" and not reaches_embedded_hub(self._ray):
            problems.append(
                "Weights would go to the embedded Hub of this machine, which the other nodes of "
                "the cluster cannot reach."
            )
        raise_together(UsageError, problems, "Choose another profile, or --engine local.")

    def has_room(self, unit: Unit) -> bool:
        """Whether resources are left; one unit too many may wait, so that clusters can grow."""
        if self._max_workers is not None:
            return len(self._running) < self._max_workers
        resources = self._ray.cluster_resources()
        cpus = sum(running.cpus for running in self._running.values())
        gpus = sum(running.gpus for running in self._running.values())
        return cpus < resources.get("CPU", 0) and (not unit.gpus or gpus < resources.get("GPU", 0))

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        job = encode_job(unit, inputs, self._context)
        task = self._task.options(
            name=f"{unit.kind} {unit.key}",
            num_cpus=min(unit.cpus, self._most_on_one_node("CPU")),
            num_gpus=unit.gpus,
            runtime_env={"env_vars": self._unit_environment(unit)},
        )
        self._running[task.remote(job, self._perform, self._code)] = unit

    def _unit_environment(self, unit: Unit) -> dict[str, str]:
        """The environment of a unit's process; Ray sets the GPUs of units that need some."""
        no_gpus = {} if unit.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return thread_environment(unit.cpus) | no_gpus | self._environment

    def wait(self, timeout_s: float | None) -> Sequence[UnitOutcome]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        return [self._read_outcome(answer, self._running.pop(answer)) for answer in ready]

    def close(self) -> None:
        for answer in self._running:
            self._ray.cancel(answer, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _read_outcome(self, answer: Any, unit: Unit) -> UnitOutcome:
        try:
            return decode_outcome(self._ray.get(answer))
        except self._ray.exceptions.RayTaskError as error:
            return UnitOutcome(unit.key, error=_node_error(error))
        except self._ray.exceptions.RayError as error:
            message = f"Ray lost its worker or its node: {type(error).__name__}."
            return UnitOutcome(unit.key, error=UnitError(message, str(error), transient=True))

    def _most_on_one_node(self, resource: str) -> float:
        """The largest amount of a resource that one node has."""
        return max(
            (node["Resources"].get(resource, 0.0) for node in alive_nodes(self._ray)), default=0.0
        )


def _run_on_node(job: str, name: str, code: str) -> str:
    """Perform a job on a node if its code version is the runner's."""
    if (here := code_version()) != code:
        return encode_error(
            job,
            UnitError(
                f"A node has other code ({here}) than the runner ({code}).",
                "Install the same hubmerge on every node.",
            ),
        )
    return run_job(job, find_function(name))


def _node_error(error: Exception) -> UnitError:
    """The error of a node that could not start a job."""
    lines = str(error).strip().splitlines()
    return UnitError(
        f"A node cannot perform units: {lines[-1] if lines else type(error).__name__}.",
        "Install the same hubmerge on every node.",
        trace=str(error),
    )
