"""What the user should know of a run: what was removed, left out, or disagrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from hubmerge.byte_sizes import format_bytes
from hubmerge.hub.commit_contents import is_checkpoint_folder
from hubmerge.refs import printable
from hubmerge.trainer_runs.curves import find_metrics
from hubmerge.trainer_runs.foreign_weights import is_training_state
from hubmerge.trainer_runs.found_checkpoint import FoundCheckpoint
from hubmerge.trainer_runs.trainer_state import Entry, TrainerState


def find_notes(
    checkpoints: Sequence[FoundCheckpoint], states: Sequence[TrainerState]
) -> Iterator[str]:
    """Yield a sentence on all that is unusual about checkpoints by rising step."""
    yield from _disagreements(checkpoints)
    if removed := _removed_steps(checkpoints, states):
        shown = ", ".join(map(str, removed[:6])) + (" ..." if removed[6:] else "")
        yield f"save_total_limit has removed the folders of {len(removed)} saved steps: {shown}."
    best = next((s.best_step for s in reversed(states) if s.best_step), None)
    if best is not None and best not in {checkpoint.step for checkpoint in checkpoints}:
        yield f"The best model of the run is step {best}, which is not here."
    yield from _left_out_note(checkpoints)


def _left_out_note(checkpoints: Sequence[FoundCheckpoint]) -> Iterator[str]:
    """One sentence on optimizer states and pickles, which are never published."""
    sizes = [
        size
        for checkpoint in checkpoints
        for name, size in checkpoint.source.files.items()
        if is_training_state(name) and not is_checkpoint_folder(name.partition("/")[0])
    ]
    if sizes:
        files = f"{len(sizes)} files" if len(sizes) > 1 else "1 file"
        yield (
            f"Left out: {files} ({format_bytes(sum(sizes))}) of optimizer, scheduler and random "
            "states and other pickles, which only continued training needs."
        )


def _removed_steps(
    checkpoints: Sequence[FoundCheckpoint], states: Sequence[TrainerState]
) -> list[int]:
    """The steps that Trainer must have saved, by its interval, and that are not here."""
    interval = states[-1].save_steps if states else None
    steps = [checkpoint.step for checkpoint in checkpoints]
    if not interval or any(step % interval for step in steps[:-1]):
        return []
    return sorted({*range(interval, steps[-1] + 1, interval)} - {*steps})[:1000]


def _disagreements(checkpoints: Sequence[FoundCheckpoint]) -> Iterator[str]:
    """A sentence for each state whose history is not that of the state before it."""
    with_state = [c for c in checkpoints if c.state]
    for first, second in pairwise(with_state):
        if found := _first_difference(first.history, second.history):
            step, name, one, other = found
            yield (
                f"{first.name} and {second.name} disagree at step {step} ({printable(name)} "
                f"{one:.6g} and {other:.6g}): a run was repeated here, and each step keeps the "
                "history in its own folder."
            )


def _first_difference(
    first: Sequence[Entry], second: Sequence[Entry]
) -> tuple[int, str, float, float] | None:
    known: dict[tuple[int, str], float] = {}
    for entry in first:
        known |= {(int(entry["step"]), name): value for name, value in _compared(entry).items()}
    for entry in second:
        for name, value in _compared(entry).items():
            if known.get((int(entry["step"]), name), value) != value:
                return int(entry["step"]), name, known[int(entry["step"]), name], value
    return None


def _compared(entry: Entry) -> Mapping[str, float]:
    """The losses and metrics of an entry, not its times."""
    metrics = find_metrics([[entry]])
    return {name: value for name, value in entry.items() if name in metrics or name == "loss"}
