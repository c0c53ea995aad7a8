"""The engine of a Ray cluster: one that is there, or one of this machine that ends with the run.

A node brings its own hubmerge, its own login at the Hub and its own caches: `HF_HOME` and
`HUBMERGE_HOME` are read on the node, so all its workers fetch a base or a data set once. What goes
to a node is a unit as text, the number of its threads and, for the embedded Hub alone, the folder
that it lies in; never a token. Results come back to the runner, which writes them. A node that goes
away takes the tries of its units with it, and the runner begins them anew elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from hubmerge.errors import UsageError, raise_together
from hubmerge.reproduce.code_digest import code_version
from hubmerge.reproduce.engines.engine import Done, Perform, Trouble
from hubmerge.reproduce.engines.job import do_job, find, name_of, read_done, refuse_job, say_job
from hubmerge.reproduce.engines.threads import threads
from hubmerge.reproduce.unit import Result, Shop, Unit

HERE = "local"
# What Ray reads before it is imported: nothing told to its makers, and where a cluster is started
# here, nothing that listens beyond 127.0.0.1 (so named as other systems have no firewall for it).
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def open_ray(
    perform: Perform,
    shop: Shop,
    *,
    address: str = HERE,
    workers: int | None = None,
    cores: int | None = None,
    home: str | None = None,
) -> Ray:
    """Join the cluster at an address (`auto` finds it), or start one here; raises UsageError.

    At most `workers` units at once, if said; `cores` are those of a cluster that is started here,
    `home` is the HUBMERGE_HOME of units, if not the node's own.
    """
    ray = _library()
    said: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == HERE:
        said |= {"include_dashboard": False, "num_cpus": cores}
    try:
        ray.init(**said)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"There is no Ray cluster at {address}: {error}.",
            "Start one with `ray start --head`, or leave --ray-address out for one here.",
        ) from error
    return Ray(ray, perform, shop, workers, {"HUBMERGE_HOME": home} if home else {})


def _library() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "The engine ray needs Ray, which is not installed.", "pip install 'hubmerge[ray]'"
        ) from error
    module: ModuleType = ray
    return module


class Ray:
    """Performs units as tasks of a cluster, which finds each a node with the CPUs and GPUs for it.

    Ray itself tries nothing twice: the runner counts tries.
    """

    def __init__(
        self,
        ray: ModuleType,
        perform: Perform,
        shop: Shop,
        workers: int | None,
        environment: Mapping[str, str],
    ) -> None:
        self._ray, self._shop, self._most = ray, shop, workers
        self._task = ray.remote(max_retries=0)(_do)
        self._perform, self._environment = name_of(perform), dict(environment)
        self._code = code_version()
        self._flying: dict[Any, Unit] = {}

    def check(self, units: Sequence[Unit]) -> None:
        problems = []
        asked = max((unit.gpus for unit in units), default=0.0)
        most = self._widest("GPU")
        if asked > most:
            problems.append(f"Units ask for {asked:g} GPUs, and no node has more than {most:g}.")
        here = self._ray.util.get_node_ip_address()
        if self._shop.hub == "local" and {node["NodeManagerAddress"] for node in self._nodes()} != {
            here
        }:
            problems.append(
                "Weights would go to the embedded Hub, which only this machine reaches, and the "
                "cluster has others."
            )
        raise_together(UsageError, problems, "Choose another profile, or --engine local.")

    def room(self, unit: Unit) -> bool:
        """One more may wait than there is room for: a cluster that can grow sees that it should."""
        if self._most is not None:
            return len(self._flying) < self._most
        there = self._ray.cluster_resources()
        cpus = sum(one.cpus for one in self._flying.values())
        gpus = sum(one.gpus for one in self._flying.values())
        return cpus < there.get("CPU", 0) and (not unit.gpus or gpus < there.get("GPU", 0))

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        job = say_job(unit, inputs, self._shop)
        task = self._task.options(
            name=f"{unit.kind} {unit.key}",
            num_cpus=min(unit.cpus, self._widest("CPU")),
            num_gpus=unit.gpus,
            runtime_env={"env_vars": self._seen(unit)},
        )
        self._flying[task.remote(job, self._perform, self._code)] = unit

    def _seen(self, unit: Unit) -> dict[str, str]:
        """Environment of a unit's process; which GPUs it sees is Ray's to say."""
        blind = {} if unit.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return threads(unit.cpus) | blind | self._environment

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=timeout_s)
        return [self._end(answer, self._flying.pop(answer)) for answer in ready]

    def close(self) -> None:
        for answer in self._flying:
            self._ray.cancel(answer, force=True)
        self._flying.clear()
        self._ray.shutdown()

    def _end(self, answer: Any, unit: Unit) -> Done:
        try:
            return read_done(self._ray.get(answer))
        except self._ray.exceptions.RayTaskError as error:
            return Done(unit.key, trouble=_unable(error))
        except self._ray.exceptions.RayError as error:
            said = f"Ray lost its worker or its node: {type(error).__name__}."
            return Done(unit.key, trouble=Trouble(said, str(error), passing=True))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _widest(self, resource: str) -> float:
        """The most that one node has of it."""
        return max((node["Resources"].get(resource, 0.0) for node in self._nodes()), default=0.0)


def _do(job: str, name: str, code: str) -> str:
    """Perform a job on a node, if it measures as the runner's own code does."""
    if (here := code_version()) != code:
        return refuse_job(
            job,
            Trouble(
                f"A node measures with other code ({here}) than the runner ({code}).",
                "Install the same hubmerge on every node.",
            ),
        )
    return do_job(job, find(name))


def _unable(error: Exception) -> Trouble:
    """A node that could not even begin."""
    lines = str(error).strip().splitlines()
    return Trouble(
        f"A node cannot perform units: {lines[-1] if lines else type(error).__name__}.",
        "Install the same hubmerge on every node.",
        trace=str(error),
    )
