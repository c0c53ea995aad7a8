"""hubmerge moerge: adapters by name -> a mixture, trained, in a folder and perhaps on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.flows.merge import MergeRequest, merge_and_publish
from hubmerge.flows.merge import Prepared as PreparedMerge
from hubmerge.flows.merge import prepare as prepare_merge
from hubmerge.flows.train import Trained, train
from hubmerge.hub.client import Hub
from hubmerge.lock import NAME as LOCK
from hubmerge.manifest import NAME, Source
from hubmerge.merging.registry import method as find_method
from hubmerge.opening.integrity import files_in, is_sealed
from hubmerge.opening.merge_inputs import check_licences
from hubmerge.opening.moe_experts import Experts, open_experts
from hubmerge.opening.moe_inputs import open_mixture
from hubmerge.opening.publication import add_figures
from hubmerge.opening.references import pin_task, read_local_manifest
from hubmerge.opening.trained_tasks import own_tasks
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.runs.machine import Machine, check_machine
from hubmerge.runs.moe_checks import check_asked, check_start, checked
from hubmerge.runs.moe_job import MixtureJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.run import Run, prepare_run
from hubmerge.specs import MoeSpec
from hubmerge.tasks.task import Task
from hubmerge.weights.atomic_folder import check_place, whole_folder


@dataclass(frozen=True)
class Request:
    """What was asked for: experts, how, on which tasks, and where the result goes.

    `extracted` is where full experts become adapters, if not below home; `merge` is a method by
    which the same experts are merged as well; `named` are the words that named the tasks. Or a
    lock, which says what is mixed and all of how but `push_every`: `policy` is whose pick, and with
    `locked` no name may mean another commit than when it was pinned.
    """

    experts: tuple[ModelRef, ...]
    asked: MoeSpec
    tasks: tuple[Task, ...] = ()
    base: ModelRef | None = None
    extracted: Path | None = None
    out: Path | None = None
    replace: bool = False
    push: str | None = None
    private: bool = False
    licence: str | None = None
    merge: str | None = None
    named: tuple[str, ...] = ()
    lock: Path | None = None
    policy: str | None = None
    locked: bool = False


def prepare(hub: Hub, request: Request, home: Path, machine: Machine) -> Run:
    """Check everything that can be checked before training, and place the run in `home`/moes.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases), CheckpointError or
    DataError; nothing is written but extracts of full experts.
    """
    check_machine(machine)
    if request.out is not None and not (request.out / NAME).is_file():
        check_place(request.out, request.replace)
    if request.lock is None:
        plan, drift = _named(hub, request, home, machine), tuple[str, ...]()
    else:
        plan, drift = _locked(hub, request, request.lock, home, machine)
    check_start(plan)
    check_licences((plan.base, *plan.experts.opened), request.licence)
    job = MixtureJob(replace(plan, licence=request.licence))

    def folder(run_id: str) -> Path:
        return home / "moes" / run_id[:12]

    run = prepare_run(hub, job, request.push, machine, folder, lambda: checked(job))
    run = replace(run, notes=(*drift, *run.notes))
    _merge_of(hub, request, home)
    if request.out is not None and not _is_there(run, request.out):
        check_place(request.out, request.replace)
    return run


def described(run: Run) -> str:
    """What will be made, in half a sentence."""
    job = run.job
    assert isinstance(job, MixtureJob)  # `prepare` made it
    asked, count = job.plan.asked, len(job.plan.experts.sources)
    steps = f"{asked.train_steps} steps from {run.base.revision.label}"
    return f"mixture of {count} experts, top {asked.top_k}: {steps}"


def moerge(hub: Hub, run: Run, request: Request, progress: Progress) -> Trained | None:
    """Build, train and publish; the last step is copied to where it was asked for."""
    made = train(hub, run, progress, private=request.private)
    if made is None:
        return None
    add_figures(made.folder, run.manifest(run.steps[-1]))
    if request.out is None:
        return made
    if not _is_there(run, request.out):
        with whole_folder(request.out, request.replace) as folder:
            copy_folder(made.folder, folder)
    return replace(made, folder=request.out)


def merged(hub: Hub, request: Request, home: Path, progress: Progress) -> Path | None:
    """The folder of the same experts merged into one model, where that was asked for."""
    prepared = _merge_of(hub, request, home)
    return merge_and_publish(hub, prepared, progress).folder if prepared else None


def _merge_of(hub: Hub, request: Request, home: Path) -> PreparedMerge | None:
    """The same experts to be merged, checked; None where nobody asked."""
    if request.merge is None:
        return None
    asked = MergeRequest(request.experts, request.merge, base=request.base, licence=request.licence)
    return prepare_merge(hub, asked, home / "merges")


def _is_there(run: Run, out: Path) -> bool:
    """Whether a folder holds the last step of just this run, whole."""
    try:
        there = read_local_manifest(out) if out.is_dir() else None
    except IntegrityError:
        return False
    last = there is not None and (there.run, there.step) == (run.id, run.steps[-1])
    return there is not None and last and is_sealed(out, there)


def copy_folder(source: Path, target: Path) -> None:
    """The files of a folder in another; not linked, as whoever asked for them may change them."""
    for name, path in files_in(source).items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _named(hub: Hub, request: Request, home: Path, machine: Machine) -> MoePlan:
    """The mixture of experts that were named, under the options that were typed."""
    if request.merge is not None:
        find_method(request.merge)
        if request.asked.extract_rank:
            raise UsageError(
                "--merge would merge the full experts, and the mixture has extracts of them.",
                "Merge them by themselves: hubmerge merge.",
            )
    check_asked(request.asked, len(request.experts), machine)
    rank = request.asked.extract_rank
    extracted = request.extracted or home / "extracted"
    experts = open_experts(hub, request.experts, request.base, rank, extracted)
    tasks = _tasks(hub, request, experts)
    own = tuple(_task_of(source, tasks) for source in experts.sources)
    return MoePlan(request.asked, experts, tasks, own, _words(request, experts))


def _locked(
    hub: Hub, request: Request, path: Path, home: Path, machine: Machine
) -> tuple[MoePlan, tuple[str, ...]]:
    """The mixture that a lock picks, and what has changed since."""
    extracted = request.extracted or home / "extracted"
    found = open_mixture(hub, path, request.policy, request.locked, request.base, extracted)
    asked = found.asked.model_copy(update={"push_every": request.asked.push_every})
    check_asked(asked, len(found.experts.sources), machine)
    tasks = _tasks(hub, request, found.experts)
    if tuple(task.id for task in tasks) != found.tasks:
        raise UsageError(
            f"The lock is for other tasks: {', '.join(found.tasks)}.",
            "Write --tasks as for `hubmerge select`, or leave it out.",
        )
    words = ["--lock", LOCK, *(["--policy", request.policy] if request.policy else [])]
    words += ["--tasks", ",".join(request.named)] if request.tasks else []
    words += ["--base", found.experts.base_source.name] if request.base else []
    return MoePlan(asked, found.experts, tasks, tasks, tuple(words), found.data), found.notes


def _own(hub: Hub, experts: Experts) -> list[Task]:
    """The tasks that the experts' manifests name; raises UsageError for those that name none."""
    return [own_tasks(hub, one)[0] for one in experts.opened]


def _tasks(hub: Hub, request: Request, experts: Experts) -> tuple[Task, ...]:
    """What is trained on: what was asked for, else each expert's own, once."""
    found = [pin_task(hub, task) for task in request.tasks] or _own(hub, experts)
    return tuple({task.id: task for task in found}.values())


def _task_of(source: Source, tasks: Sequence[Task]) -> Task | None:
    return next((task for task in tasks if task.id == source.task), None)


def _words(request: Request, experts: Experts) -> tuple[str, ...]:
    """The command from its experts on, by labels that do not move."""
    words = [source.label for source in experts.sources]
    if request.tasks:
        words += ["--tasks", ",".join(request.named)]
    if request.base:
        words += ["--base", str(request.base)]
    return tuple(words)
