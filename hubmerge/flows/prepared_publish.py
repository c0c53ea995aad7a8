"""What hubmerge publish will do: the checkpoints of a run, their base and manifest, all checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError, NoAccess, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files, read_file, same_bytes
from hubmerge.hub.step_names import list_refs
from hubmerge.kinds import EXPERT, MOE
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.merging.plan import Expert, MergePlan, find_checkpoint_problems
from hubmerge.merging.registry import method
from hubmerge.opening.bases import original_of_quantised
from hubmerge.opening.integrity import check_manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.publication import (
    check_repository_kind,
)
from hubmerge.opening.references import open_ref, source_of, versions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, parse_ref, printable, step_tag
from hubmerge.tasks.task import Task
from hubmerge.trainer_runs.found_checkpoint import FoundCheckpoint
from hubmerge.trainer_runs.found_run import FoundRun, inspect_run
from hubmerge.trainer_runs.run_source import open_run_source
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.expert_stacks import restack
from hubmerge.weights.match_options import VOCABULARY_HINT, MatchOptions


@dataclass(frozen=True)
class PublishRequest:
    """What to publish and how it is described.

    `base` and `task` make manifests; without `base`, that of the run's own files is used. `curve`
    names the validation metric of the curve, and `last_step` is the step of the model at the root.
    """

    to: str
    base: ModelRef | None = None
    task: Task | None = None
    curve: str | None = None
    last_step: int | None = None


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint that is opened: its folder on disk, and its manifest if hubmerge made it."""

    found: FoundCheckpoint
    folder: Path
    checkpoint: Checkpoint

    @property
    def step(self) -> int:
        return self.found.step

    @property
    def manifest(self) -> Manifest | None:
        return self.found.manifest

    @property
    def files(self) -> dict[str, Path]:
        """The files to publish, by path."""
        return {name: self.folder / name for name in self.found.files}

    @property
    def layout(self) -> str:
        """Whose layout its files have: that of peft, open_clip or transformers."""
        if self.checkpoint.kind == "lora":
            return "peft"
        open_clip = (self.folder / "open_clip_config.json").is_file()
        return "open_clip" if open_clip else "transformers"


@dataclass(frozen=True)
class PreparedPublish:
    """A run that was checked; with a manifest if a base or a task was named.

    `steps` are its checkpoints by rising step; none if they are on a Hub and were not fetched.
    `published` has the commits of those that are published already.
    """

    to: str
    run: FoundRun
    steps: tuple[CheckpointFolder, ...]
    manifest: Manifest | None
    base: OpenedModel | None
    published: dict[int, str]
    notes: tuple[str, ...]


def prepare_publish(
    hub: Hub, source: ModelRef, request: PublishRequest, progress: Progress, *, fetch: bool = True
) -> PreparedPublish:
    """Find the checkpoints of a run and check them all before anything is uploaded.

    Without `fetch`, the weights of a run on a Hub are not fetched and not compared with the base.
    Raises UsageError for a folder without checkpoints, CheckpointError for one that cannot be
    opened or does not fit the base, IntegrityError for a repository with other contents.
    """
    if source.repo_id == request.to:
        raise UsageError(
            f"{request.to} is the repository of the run itself.", "Choose another with --to."
        )
    run = inspect_run(open_run_source(hub, source, progress), request.curve, request.last_step)
    is_opened = fetch or run.source.is_local
    steps = tuple(_open_all(run, progress)) if is_opened else ()
    kind = _repository_kind(run, steps)
    base, notes = _find_base(hub, run, request)
    manifest = None
    if base is not None:
        _check_fit(base, steps)
        manifest = _run_manifest(run, base, request)
    if not _holds_our_step(hub, request.to, steps):
        check_repository_kind(hub, request.to, kind)
    published = {c.step: commit for c in steps if (commit := _find_published(hub, request.to, c))}
    notes += _unchanged_notes(hub, request.to, published, manifest)
    return PreparedPublish(request.to, run, steps, manifest, base, published, (*run.notes, *notes))


def _open_all(run: FoundRun, progress: Progress) -> Iterator[CheckpointFolder]:
    """Open every checkpoint, fetched where it is on a Hub, and compare it with its manifest."""
    for number, found in enumerate(run.checkpoints):
        if not run.source.is_local:
            progress(f"fetching {found.source.label}", number, len(run.checkpoints))
        folder = found.source.folder()
        if found.manifest is not None:
            check_manifest(folder, found.manifest, found.source.label)
        yield CheckpointFolder(found, folder, found.open())


def _repository_kind(run: FoundRun, steps: Sequence[CheckpointFolder]) -> str:
    """Return the kind of a repository of these steps: experts or mixtures of experts."""
    kinds = {MOE if checkpoint.checkpoint.is_moe else EXPERT for checkpoint in steps} or {EXPERT}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{run.source.label} holds experts and mixtures.",
            "Publish them from two folders to two repositories.",
        )
    return kinds.pop()


def _find_base(
    hub: Hub, run: FoundRun, request: PublishRequest
) -> tuple[OpenedModel | None, tuple[str, ...]]:
    """The base of the manifests: the one named, else the one in the run's files; with notes.

    None without --base and --task: a base may be large, and is fetched for a manifest alone.
    """
    if request.base is not None:
        return open_ref(hub, request.base), ()
    if request.task is None:
        return None, tuple(_manifest_hint(run))
    named = run.settings.base
    hint = "Name it with --base."
    if named is None:
        raise UsageError("A manifest needs a base, and no file of the run names one.", hint)
    where = f"{printable(named.value)}, which {named.where} names as the base,"
    if original := original_of_quantised(named.value):
        raise UsageError(f"{where} is a quantised copy.", f"Perhaps --base {printable(original)}.")
    try:
        ref = _parse_base(named.value)
        if ref is None or (
            ref.path is not None and not (run.source.is_local and ref.path.is_dir())
        ):
            raise UsageError(f"{where} is no repository and no folder here.", hint)
        if run.settings.base_revision and ref.repo_id and ref.revision is None:
            ref = parse_ref(f"{ref.repo_id}@{run.settings.base_revision}")
        return open_ref(hub, ref), (f"The base is {ref}, from {named.where}.",)
    except (NotOnHub, NoAccess) as error:
        raise UsageError(f"{where} cannot be opened: {error.message}", hint) from error


def _parse_base(name: str) -> ModelRef | None:
    try:
        return parse_ref(name)
    except UsageError:
        return None


def _manifest_hint(run: FoundRun) -> Iterator[str]:
    if any(c.manifest is None for c in run.checkpoints):
        base = run.settings.base
        where = f" The base is perhaps {printable(base.value)} ({base.where})." if base else ""
        yield (
            "Without --task or --base, steps get no manifest and no curve, which policies of "
            f"`select` use.{where}"
        )


def _run_manifest(run: FoundRun, base: OpenedModel, request: PublishRequest) -> Manifest:
    """The manifest of the run, without what differs between its steps."""
    last, task = run.checkpoints[-1], request.task
    training: dict[str, Any] = dict(run.settings.tuning)
    if run.settings.seed is not None:
        training["seed"] = run.settings.seed
    if last.state and last.state.max_steps:
        training["steps"] = last.state.max_steps
    if run.curve is not None:
        training["curve"] = run.curve.formula
    if not run.source.is_local:
        training["published_from"] = run.source.label
    manifest = Manifest(
        kind=EXPERT,
        base=source_of(base),
        last_step=last.step,
        training=training,
        command="hubmerge publish",
        versions=versions(),
    )
    if task is None:
        return manifest
    return dataclasses.replace(manifest, task=task.id, task_kind=task.spec.kind)


def _check_fit(base: OpenedModel, steps: Sequence[CheckpointFolder]) -> None:
    """Check that every checkpoint can be merged on the base that its manifest will name.

    What `merge` decides by its options, heads, ties and vocabularies, is not decided here.
    """
    if not steps:
        return
    average = method("average")
    experts = tuple(
        Expert(restack(base.checkpoint, s.checkpoint), str(s.step), label=s.found.source.label)
        for s in steps
    )
    options = MatchOptions(tied="untie", heads="keep")
    plan = MergePlan(base.checkpoint, experts, average, average.params(), options=options)
    problems = [pair for pair in find_checkpoint_problems(plan) if pair[1] != VOCABULARY_HINT]
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))


def _holds_our_step(hub: Hub, to: str, steps: Sequence[CheckpointFolder]) -> bool:
    """Return whether main has one of these steps, tagged or left untagged by a crash."""
    try:
        head = list_refs(hub, to).branches.get("main")
    except NotOnHub:
        return False
    return any(_has_weights(hub, to, head, checkpoint) for checkpoint in steps) if head else False


def _find_published(hub: Hub, to: str, checkpoint: CheckpointFolder) -> str | None:
    """The commit of a step that is tagged with these weights already.

    A published step never changes, so its manifest stays as it is: that of a shorter run.
    """
    try:
        commit = list_refs(hub, to).tags.get(step_tag(checkpoint.step))
    except NotOnHub:
        return None
    return commit if commit and _has_weights(hub, to, commit, checkpoint) else None


def _has_weights(hub: Hub, to: str, commit: str, checkpoint: CheckpointFolder) -> bool:
    """Whether a commit has the weight files of a checkpoint."""
    files = list_files(hub, Revision(ModelRef(to), commit))
    return all(
        name in files and same_bytes(checkpoint.folder / name, files[name])
        for name in checkpoint.checkpoint.weight_file_names()
    )


def _unchanged_notes(
    hub: Hub, to: str, published: dict[int, str], manifest: Manifest | None
) -> tuple[str, ...]:
    """A note on steps that were published with another base, task or curve, or without one."""
    if manifest is None:
        return ()
    other = [
        step_tag(step)
        for step, commit in published.items()
        if _described(_published_manifest(hub, to, commit)) != _described(manifest)
    ]
    if not other:
        return ()
    return (
        f"{', '.join(other)} of {to} were published with another base, task or curve, and a "
        "published step never changes: choose another repository for these.",
    )


def _published_manifest(hub: Hub, to: str, commit: str) -> Manifest | None:
    data = read_file(hub, Revision(ModelRef(to), commit), MANIFEST_JSON)
    return parse_manifest(data, f"{to}@{commit[:12]}") if data else None


def _described(manifest: Manifest | None) -> list[object]:
    if manifest is None:
        return []
    return [manifest.base.digest, manifest.task, manifest.training.get("curve")]
