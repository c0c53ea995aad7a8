"""One checkpoint of a run: its step, its state, and the files that would be published."""

from __future__ import annotations

from dataclasses import dataclass

from hubmerge.hub.commit_contents import TRAINER_STATE
from hubmerge.hub.fetch import files_to_download
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.trainer_runs.run_source import CheckpointSource
from hubmerge.trainer_runs.trainer_state import Entry, TrainerState, parse_trainer_state
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

ROOT_NAME = "(root)"


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint of a run and its step; its manifest if hubmerge made it.

    `state` is the state of Trainer in its folder, None without one; `history` what the run logged
    up to it, from its own state or from another one of the run.
    """

    source: CheckpointSource
    step: int
    state: TrainerState | None = None
    manifest: Manifest | None = None
    history: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.source.name or ROOT_NAME

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files to publish: those that would be fetched, so no pickles."""
        return tuple(files_to_download(self.source.files))

    def open(self) -> Checkpoint:
        """Open its weights; raises CheckpointError."""
        return open_checkpoint(self.source.folder())


def inspect_checkpoint(source: CheckpointSource) -> FoundCheckpoint:
    """The step of a checkpoint: that of its manifest, else of its trainer state or its name."""
    data = source.read(MANIFEST_JSON) if MANIFEST_JSON in source.files else None
    manifest = parse_manifest(data, source.label) if data else None
    state = (
        parse_trainer_state(source.read(TRAINER_STATE)) if TRAINER_STATE in source.files else None
    )
    own = [manifest.step if manifest else None, state.step if state else None, source.named_step]
    step = next((step for step in own if step is not None), 0)
    named = source.named_step
    notes = [f"its name says step {named}, its {TRAINER_STATE} {step}"] * (
        named not in (None, step) and manifest is None
    )
    return FoundCheckpoint(source, step, state, manifest, notes=tuple(notes))
