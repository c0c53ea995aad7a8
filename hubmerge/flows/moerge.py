"""hubmerge moerge: train a mixture of experts from adapters, into a folder or to the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.flows.merge import merge_and_publish, prepare_merge
from hubmerge.flows.prepared_merge import MergeRequest, PreparedMerge
from hubmerge.flows.train import TrainResult, train
from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.manifest import MANIFEST_JSON
from hubmerge.merging.registry import method as find_method
from hubmerge.opening.integrity import files_in, matches_manifest
from hubmerge.opening.merge_inputs import check_licences
from hubmerge.opening.moe_experts import MoeExperts, open_experts
from hubmerge.opening.moe_inputs import open_locked_moe
from hubmerge.opening.publication import add_figures
from hubmerge.opening.references import pin_task, read_local_manifest
from hubmerge.opening.trained_tasks import find_trained_tasks
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.runs.machine import Machine, check_machine
from hubmerge.runs.moe_checks import check_data, check_moe_spec, check_router_start
from hubmerge.runs.moe_job import MoeJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.run import Run, prepare_run
from hubmerge.source import Source
from hubmerge.specs import MoeSpec
from hubmerge.tasks.task import Task
from hubmerge.weights.atomic_folder import atomic_folder, check_target


@dataclass(frozen=True)
class MoeRequest:
    """The experts, options and tasks of a mixture of experts, and where the result goes.

    `extracted` is the folder for adapters extracted from fully fine-tuned experts, if not below
    home; `merge` is a method by which the same experts are merged as well; `task_names` are the
    tasks as typed. A `lock` replaces the experts and all options but `push_every`: `policy` names
    the pick, and with `locked` every name must still point to its pinned commit.
    """

    experts: tuple[ModelRef, ...]
    moe_spec: MoeSpec
    tasks: tuple[Task, ...] = ()
    base: ModelRef | None = None
    extracted: Path | None = None
    out: Path | None = None
    replace: bool = False
    push: str | None = None
    private: bool = False
    licence: str | None = None
    merge: str | None = None
    task_names: tuple[str, ...] = ()
    lock: Path | None = None
    policy: str | None = None
    locked: bool = False


def prepare_moe(hub: Hub, request: MoeRequest, home: Path, machine: Machine) -> Run:
    """Check everything that can be checked before training; the run's folder is in `home`/moes.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases), CheckpointError or
    DataError. Only adapters extracted from fully fine-tuned experts are written.
    """
    check_machine(machine)
    if request.out is not None and not (request.out / MANIFEST_JSON).is_file():
        check_target(request.out, request.replace)
    if request.lock is None:
        plan, drift = _plan_from_names(hub, request, home, machine), tuple[str, ...]()
    else:
        plan, drift = _plan_from_lock(hub, request, request.lock, home, machine)
    check_router_start(plan)
    check_licences((plan.base, *plan.experts.models), request.licence)
    job = MoeJob(replace(plan, licence=request.licence))

    def folder(run_id: str) -> Path:
        return home / "moes" / run_id[:12]

    run = prepare_run(hub, job, request.push, machine, folder, lambda: check_data(job))
    run = replace(run, notes=(*drift, *run.notes))
    _prepare_merge_of_experts(hub, request, home)
    if request.out is not None and not _holds_last_step(run, request.out):
        check_target(request.out, request.replace)
    return run


def describe_run(run: Run) -> str:
    """Describe what will be trained, in half a sentence."""
    job = run.job
    assert isinstance(job, MoeJob)  # `prepare_moe` made it
    spec, count = job.plan.moe_spec, len(job.plan.experts.sources)
    steps = f"{spec.train_steps} steps from {run.base.revision.label}"
    return f"mixture of {count} experts, top {spec.top_k}: {steps}"


def moerge(
    hub: Hub,
    run: Run,
    request: MoeRequest,
    progress: Progress,
    warn: Callable[[str], None] = lambda sentence: None,
) -> TrainResult | None:
    """Train and publish the mixture, and copy its last step to `request.out`.

    `warn` gets a sentence when the Hub asks to wait for minutes or hours.
    """
    result = train(hub, run, progress, private=request.private, warn=warn)
    if result is None:
        return None
    add_figures(result.folder, run.manifest(run.steps[-1]))
    if request.out is None:
        return result
    if not _holds_last_step(run, request.out):
        with atomic_folder(request.out, request.replace) as folder:
            copy_folder(result.folder, folder)
    return replace(result, folder=request.out)


def merge_experts(hub: Hub, request: MoeRequest, home: Path, progress: Progress) -> Path | None:
    """Merge the same experts into one model and return its folder, None if not requested."""
    prepared = _prepare_merge_of_experts(hub, request, home)
    return merge_and_publish(hub, prepared, progress).folder if prepared else None


def _prepare_merge_of_experts(hub: Hub, request: MoeRequest, home: Path) -> PreparedMerge | None:
    """Check a merge of the same experts; None if not requested."""
    if request.merge is None:
        return None
    merge_request = MergeRequest(
        request.experts, request.merge, base=request.base, licence=request.licence
    )
    return prepare_merge(hub, merge_request, home / "merges")


def _holds_last_step(run: Run, out: Path) -> bool:
    """Return whether a folder has the complete last step of this run."""
    try:
        existing = read_local_manifest(out) if out.is_dir() else None
    except IntegrityError:
        return False
    is_last_step = existing is not None and (existing.run, existing.step) == (run.id, run.steps[-1])
    return existing is not None and is_last_step and matches_manifest(out, existing)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder; they are not linked, because the user may change them."""
    for name, path in files_in(source).items():
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)


def _plan_from_names(hub: Hub, request: MoeRequest, home: Path, machine: Machine) -> MoePlan:
    """Plan a mixture from named experts and the given options."""
    if request.merge is not None:
        find_method(request.merge)
        if request.moe_spec.extract_rank:
            raise UsageError(
                "--merge would merge the full experts, but the mixture uses adapters extracted "
                "from them.",
                "Merge the experts separately: hubmerge merge.",
            )
    check_moe_spec(request.moe_spec, len(request.experts), machine)
    rank = request.moe_spec.extract_rank
    extracted = request.extracted or home / "extracted"
    experts = open_experts(hub, request.experts, request.base, rank, extracted)
    tasks = _training_tasks(hub, request, experts)
    expert_tasks = tuple(_find_task(source, tasks) for source in experts.sources)
    return MoePlan(request.moe_spec, experts, tasks, expert_tasks, _command_words(request, experts))


def _plan_from_lock(
    hub: Hub, request: MoeRequest, path: Path, home: Path, machine: Machine
) -> tuple[MoePlan, tuple[str, ...]]:
    """Plan the mixture of a lock's pick; also return notes on what has changed since."""
    extracted = request.extracted or home / "extracted"
    locked = open_locked_moe(hub, path, request.policy, request.locked, request.base, extracted)
    spec = locked.moe_spec.model_copy(update={"push_every": request.moe_spec.push_every})
    check_moe_spec(spec, len(locked.experts.sources), machine)
    tasks = _training_tasks(hub, request, locked.experts)
    if tuple(task.id for task in tasks) != locked.tasks:
        raise UsageError(
            f"The lock is for other tasks: {', '.join(locked.tasks)}.",
            "Write --tasks as for `hubmerge select`, or leave it out.",
        )
    words = ["--lock", LOCK, *(["--policy", request.policy] if request.policy else [])]
    words += ["--tasks", ",".join(request.task_names)] if request.tasks else []
    words += ["--base", locked.experts.base_source.name] if request.base else []
    return MoePlan(spec, locked.experts, tasks, tasks, tuple(words), locked.data), locked.notes


def _tasks_of_experts(hub: Hub, experts: MoeExperts) -> list[Task]:
    """Return the tasks in the experts' manifests; raises UsageError if a manifest has none."""
    return [find_trained_tasks(hub, expert)[0] for expert in experts.models]


def _training_tasks(hub: Hub, request: MoeRequest, experts: MoeExperts) -> tuple[Task, ...]:
    """Return the requested tasks, or each expert's own task, without duplicates."""
    training_tasks = [pin_task(hub, task) for task in request.tasks] or _tasks_of_experts(
        hub, experts
    )
    return tuple({task.id: task for task in training_tasks}.values())


def _find_task(source: Source, tasks: Sequence[Task]) -> Task | None:
    return next((task for task in tasks if task.id == source.task), None)


def _command_words(request: MoeRequest, experts: MoeExperts) -> tuple[str, ...]:
    """Return the arguments of the command, from the pinned labels of the experts on."""
    words = [source.label for source in experts.sources]
    if request.tasks:
        words += ["--tasks", ",".join(request.task_names)]
    if request.base:
        words += ["--base", str(request.base)]
    return tuple(words)
