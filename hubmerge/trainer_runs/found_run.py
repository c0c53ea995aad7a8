"""What a run holds, before anything is published: steps, curve, settings, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hubmerge.errors import CheckpointError, HubmergeError, UsageError, raise_together
from hubmerge.file_digests import file_digest
from hubmerge.hub.commit_contents import TRAINER_STATE
from hubmerge.trainer_runs.curves import CurveMetric, choose_curve, curve_points, find_metrics
from hubmerge.trainer_runs.foreign_weights import (
    explain_weights,
    find_safe_weights,
)
from hubmerge.trainer_runs.found_checkpoint import (
    ROOT_NAME,
    FoundCheckpoint,
    inspect_checkpoint,
)
from hubmerge.trainer_runs.run_notes import find_notes
from hubmerge.trainer_runs.run_settings import RunSettings, read_run_settings
from hubmerge.trainer_runs.run_source import RunSource
from hubmerge.trainer_runs.trainer_state import (
    Entry,
    TrainerState,
    parse_trainer_log,
)
from hubmerge.trainer_runs.written_history import TRAINER_LOG, state_beside, written_history
from hubmerge.training_curve import ValidationPoint
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.checkpoint import Checkpoint

BEST, STOPPED, LAST = "best", "early stop", "last"
_REPAIR_HINT = "Repair or move them, and run the command again."
_STEP_HINT = "Write --last-step N to publish it as step N."


@dataclass(frozen=True)
class FoundRun:
    """A run that was looked at: checkpoints by rising step, what is left out and why, and notes.

    `best_step` is that of the best model by the metric of the run itself. `metrics` are the names
    of the validation metrics that it logged, and `curve` the one that becomes the curve of the
    manifests.
    """

    source: RunSource
    checkpoints: tuple[FoundCheckpoint, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    best_step: int | None
    metrics: tuple[str, ...]
    curve: CurveMetric | None
    settings: RunSettings

    def points(self, checkpoint: FoundCheckpoint) -> tuple[ValidationPoint, ...]:
        """The curve up to a checkpoint; that of its manifest if it has one."""
        if checkpoint.manifest is not None:
            return checkpoint.manifest.validation
        if self.curve is None:
            return ()
        return curve_points(self.curve, checkpoint.history, checkpoint.step)

    def marks(self, checkpoint: FoundCheckpoint) -> tuple[str, ...]:
        """How the run itself marks a step: its best model, where it stopped early, its last."""
        marks = {
            BEST: checkpoint.step == self.best_step,
            STOPPED: bool(checkpoint.state and checkpoint.state.stopped_early),
            LAST: checkpoint is self.checkpoints[-1],
        }
        return tuple(mark for mark, holds in marks.items() if holds)


def inspect_run(
    source: RunSource, wanted_curve: str | None = None, last_step: int | None = None
) -> FoundRun:
    """Look at every checkpoint of a run; weights are opened where they are local.

    `last_step` is the step of the model at the root, if the run does not record it. Raises
    CheckpointError with all checkpoints that cannot be published, UsageError if none is left.
    """
    left_out = list(source.left_out)
    found = [inspect_checkpoint(checkpoint) for checkpoint in source.checkpoints]
    found, problems = _without_broken(source, found, left_out)
    found, notes = _add_root(source, found, last_step, left_out)
    found = _one_per_step(source, found, left_out, problems)
    hints = dict.fromkeys(hint for _, hint in problems if hint)
    raise_together(
        CheckpointError, [problem for problem, _ in problems], " ".join(hints) or _REPAIR_HINT
    )
    if not found:
        reason = f"{left_out[0][0] or ROOT_NAME}: {left_out[0][1]}" if left_out else "none"
        raise UsageError(f"{source.label} holds no checkpoints that can be published.",
                         f"Left out is {reason}.")  # fmt: skip
    beside = state_beside(source.read_root)
    checkpoints = _with_histories(source, sorted(found, key=lambda c: c.step), beside)
    states = [c.state for c in checkpoints if c.state] or ([beside] if beside else [])
    histories = [c.history for c in checkpoints]
    return FoundRun(
        source=source,
        checkpoints=tuple(checkpoints),
        left_out=tuple(left_out),
        notes=(*notes, *find_notes(checkpoints, states)),
        best_step=next((state.best_step for state in reversed(states) if state.best_step), None),
        metrics=find_metrics(histories),
        curve=choose_curve(wanted_curve, states, histories),
        settings=read_run_settings(
            source.read_root, checkpoints[-1].source.read,
            is_adapter=ADAPTER_CONFIG in checkpoints[-1].source.files,
        ),
    )  # fmt: skip


def _without_broken(
    source: RunSource, found: Sequence[FoundCheckpoint], left_out: list[tuple[str, str]]
) -> tuple[list[FoundCheckpoint], list[tuple[str, str]]]:
    """The checkpoints with whole weights, and the problems of others; interrupted are left out.

    Trainer writes its state last: a checkpoint without one, beside others that have one, was
    interrupted if it also lacks what all others have, or its weights cannot be read.
    """
    good, problems = list[FoundCheckpoint](), list[tuple[str, str]]()
    with_state = [c for c in found if c.state]
    common = _common_files([c for c in with_state if find_safe_weights(c.source.files)])
    for checkpoint in found:
        problem = _weights_problem(checkpoint, source.is_local)
        is_behind = bool(with_state) and checkpoint.state is None and checkpoint.manifest is None
        missing = sorted(common - {*checkpoint.source.files})
        if is_behind and (problem or missing):
            lacks = f"it lacks {missing[0]}" if missing else "its weights are not complete"
            left_out.append(
                (checkpoint.name, f"interrupted: it has no {TRAINER_STATE}, and {lacks}")
            )
        elif problem:
            problems.append(problem)
        else:
            good.append(checkpoint)
    return good, problems


def _common_files(found: Sequence[FoundCheckpoint]) -> set[str]:
    """The files to publish that all of these have, but for weights and the state itself."""
    names = [{n for n in c.files if not n.endswith((".safetensors", ".index.json"))} for c in found]
    return set.intersection(*names) - {TRAINER_STATE} if names else set()


def _weights_problem(checkpoint: FoundCheckpoint, is_local: bool) -> tuple[str, str] | None:
    """Why the weights of a checkpoint cannot be published, with a hint; None if they can."""
    if problem := explain_weights(checkpoint.source.label, checkpoint.source.files):
        return problem
    if is_local:
        try:
            checkpoint.open()
        except HubmergeError as error:
            return error.message, error.hint
    return None


def _add_root(
    source: RunSource,
    found: Sequence[FoundCheckpoint],
    last_step: int | None,
    left_out: list[tuple[str, str]],
) -> tuple[list[FoundCheckpoint], list[str]]:
    """The checkpoints with the model at the root, if that is another step; notes on it."""
    if source.root is None:
        if last_step is not None:
            raise UsageError(
                f"There is no model at the root of {source.label}.", "Leave --last-step out."
            )
        return list(found), []
    root = inspect_checkpoint(source.root)
    if root.manifest is not None and found:
        return list(found), []
    root.open()
    if same := next((c for c in found if _same_weights(root, c)), None):
        return list(found), [f"The model at the root has the weights of {same.name}."]
    last = max((checkpoint.step for checkpoint in found), default=-1)
    own = root.manifest.step if root.manifest else None
    recorded = own if own is not None else _root_step(source, root)
    step = recorded if last_step is None else last_step
    if step is None or step <= last:
        where = "its step is not known" if step is None else f"it is not {step} as it is saved"
        left_out.append((ROOT_NAME, f"a model at the root: {where}. {_STEP_HINT}"))
        return list(found), []
    return [*found, replace(root, step=step)], [f"The model at the root is step {step}."]


def _root_step(source: RunSource, root: FoundCheckpoint) -> int | None:
    """The step of a final save, which Trainer's root state or LLaMA-Factory's log has."""
    if root.state:
        return root.state.step
    log = parse_trainer_log(source.read_root(TRAINER_LOG))
    return next((int(e["step"]) for e in reversed(log) if e.get("total_steps") == e["step"]), None)


def _same_weights(first: FoundCheckpoint, second: FoundCheckpoint) -> bool:
    one, other = first.open(), second.open()
    names = one.weight_file_names()
    if names != other.weight_file_names():
        return False
    pairs = [(one.folder / name, other.folder / name) for name in names]
    same_sizes = all(a.stat().st_size == b.stat().st_size for a, b in pairs)
    if not same_sizes or not _begins_alike(one, other):
        return False
    return all(file_digest(a) == file_digest(b) for a, b in pairs)


def _begins_alike(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether every tensor begins with the same values: hashing every checkpoint takes minutes."""
    if first.index.keys() != second.index.keys():
        return False
    reads = ((first.read_first(n, 64), second.read_first(n, 64)) for n in first.index)
    return all(a.tobytes() == b.tobytes() for a, b in reads)


def _one_per_step(
    source: RunSource,
    found: Sequence[FoundCheckpoint],
    left_out: list[tuple[str, str]],
    problems: list[tuple[str, str]],
) -> list[FoundCheckpoint]:
    """One checkpoint a step: two folders are a problem, of two revisions the first is used."""
    by_step: dict[int, FoundCheckpoint] = {}
    for checkpoint in found:
        if checkpoint.step not in by_step:
            by_step[checkpoint.step] = checkpoint
        elif source.is_local:
            problem = f"Two folders hold step {checkpoint.step}."
            problems += [(problem, "")] * (problem not in [known for known, _ in problems])
        else:
            other = by_step[checkpoint.step].name
            left_out.append(
                (checkpoint.name, f"another revision of step {checkpoint.step}: {other}")
            )
    return list(by_step.values())


def _with_histories(
    source: RunSource, checkpoints: Sequence[FoundCheckpoint], beside: TrainerState | None
) -> list[FoundCheckpoint]:
    """The checkpoints with the history up to each: its own, else the longest of the run.

    Where no state has one it is that in LLaMA-Factory's log, or in the table on the card.
    """
    states = [c.state for c in checkpoints if c.state] + [beside] * (beside is not None)
    longest = max(states, key=lambda state: state.step if state else 0, default=None)
    others = longest.history if longest and longest.history else written_history(source.read_root)

    def history(checkpoint: FoundCheckpoint) -> tuple[Entry, ...]:
        own = checkpoint.state.history if checkpoint.state else ()
        return tuple(e for e in own or others if e["step"] <= checkpoint.step)

    return [replace(checkpoint, history=history(checkpoint)) for checkpoint in checkpoints]
